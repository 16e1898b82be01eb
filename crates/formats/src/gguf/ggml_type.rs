//! The tensor types of ggml: their numbers in a file, names and sizes.

/// A tensor type, as ggml numbers it.
#[allow(non_camel_case_types, reason = "ggml's own names")]
#[allow(missing_docs, reason = "the names are the format's own")]
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum GgmlType {
    F32,
    F16,
    Q4_0,
    Q4_1,
    Q5_0,
    Q5_1,
    Q8_0,
    Q8_1,
    Q2_K,
    Q3_K,
    Q4_K,
    Q5_K,
    Q6_K,
    Q8_K,
    IQ2_XXS,
    IQ2_XS,
    IQ3_XXS,
    IQ1_S,
    IQ4_NL,
    IQ3_S,
    IQ2_S,
    IQ4_XS,
    I8,
    I16,
    I32,
    I64,
    F64,
    IQ1_M,
    BF16,
    TQ1_0,
    TQ2_0,
    MXFP4,
    NVFP4,
    Q1_0,
}

/// (type, number in a file, name, elements a block, bytes a block)
type Row = (GgmlType, u32, &'static str, usize, usize);

/// In the order of the enum, which `row` relies on and a test keeps.
#[rustfmt::skip]
const TABLE: [Row; 34] = [
    (GgmlType::F32,      0, "F32",      1,   4),
    (GgmlType::F16,      1, "F16",      1,   2),
    (GgmlType::Q4_0,     2, "Q4_0",     32,  18),
    (GgmlType::Q4_1,     3, "Q4_1",     32,  20),
    (GgmlType::Q5_0,     6, "Q5_0",     32,  22),
    (GgmlType::Q5_1,     7, "Q5_1",     32,  24),
    (GgmlType::Q8_0,     8, "Q8_0",     32,  34),
    (GgmlType::Q8_1,     9, "Q8_1",     32,  36),
    (GgmlType::Q2_K,    10, "Q2_K",     256, 84),
    (GgmlType::Q3_K,    11, "Q3_K",     256, 110),
    (GgmlType::Q4_K,    12, "Q4_K",     256, 144),
    (GgmlType::Q5_K,    13, "Q5_K",     256, 176),
    (GgmlType::Q6_K,    14, "Q6_K",     256, 210),
    (GgmlType::Q8_K,    15, "Q8_K",     256, 292),
    (GgmlType::IQ2_XXS, 16, "IQ2_XXS",  256, 66),
    (GgmlType::IQ2_XS,  17, "IQ2_XS",   256, 74),
    (GgmlType::IQ3_XXS, 18, "IQ3_XXS",  256, 98),
    (GgmlType::IQ1_S,   19, "IQ1_S",    256, 50),
    (GgmlType::IQ4_NL,  20, "IQ4_NL",   32,  18),
    (GgmlType::IQ3_S,   21, "IQ3_S",    256, 110),
    (GgmlType::IQ2_S,   22, "IQ2_S",    256, 82),
    (GgmlType::IQ4_XS,  23, "IQ4_XS",   256, 136),
    (GgmlType::I8,      24, "I8",       1,   1),
    (GgmlType::I16,     25, "I16",      1,   2),
    (GgmlType::I32,     26, "I32",      1,   4),
    (GgmlType::I64,     27, "I64",      1,   8),
    (GgmlType::F64,     28, "F64",      1,   8),
    (GgmlType::IQ1_M,   29, "IQ1_M",    256, 56),
    (GgmlType::BF16,    30, "BF16",     1,   2),
    (GgmlType::TQ1_0,   34, "TQ1_0",    256, 54),
    (GgmlType::TQ2_0,   35, "TQ2_0",    256, 66),
    (GgmlType::MXFP4,   39, "MXFP4",    32,  17),
    (GgmlType::NVFP4,   40, "NVFP4",    64,  36),
    (GgmlType::Q1_0,    41, "Q1_0",     128, 18),
];

impl GgmlType {
    /// Every type, in the order of their numbers.
    pub fn all() -> impl Iterator<Item = GgmlType> {
        TABLE.iter().map(|row| row.0)
    }

    fn row(self) -> &'static Row {
        &TABLE[self as usize]
    }

    /// The type with this number in a file. The error explains removed and unknown numbers.
    pub fn from_id(id: u32) -> Result<GgmlType, String> {
        if let Some(row) = TABLE.iter().find(|row| row.1 == id) {
            return Ok(row.0);
        }
        Err(match id {
            4 | 5 => format!(
                "type {id} (Q4_2 or Q4_3) was removed from the format; convert the model again"
            ),
            31..=33 | 36..=38 => {
                format!(
                    "type {id} (a repacked 4-bit layout) was removed from the format; use the plain Q4_0 or IQ4_NL file"
                )
            }
            _ => format!("unknown type {id}; the file may be newer than this reader"),
        })
    }

    /// The number in a file.
    pub fn id(self) -> u32 {
        self.row().1
    }

    /// The name that ggml gives it, such as `Q4_1`.
    pub fn name(self) -> &'static str {
        self.row().2
    }

    /// Elements in a block: 1 for plain numbers, 32, 64, 128 or 256 for quantized ones.
    pub fn block_size(self) -> usize {
        self.row().3
    }

    /// Bytes of a block.
    pub fn type_size(self) -> usize {
        self.row().4
    }

    /// The number of `general.file_type` for a file whose weights are mostly of this type, for the types that
    /// [`super::quantize`] writes (ggml's `llama_ftype`).
    pub fn file_type(self) -> Option<u32> {
        Some(match self {
            GgmlType::F32 => 0,
            GgmlType::F16 => 1,
            GgmlType::Q4_0 => 2,
            GgmlType::Q4_1 => 3,
            GgmlType::Q8_0 => 7,
            GgmlType::Q5_0 => 8,
            GgmlType::Q5_1 => 9,
            GgmlType::BF16 => 32,
            _ => return None,
        })
    }

    /// Bytes of `elements` elements; `None` if they are not whole blocks, or overflow.
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        let block = self.block_size() as u64;
        if !elements.is_multiple_of(block) {
            return None;
        }
        (elements / block).checked_mul(self.type_size() as u64)
    }
}

impl std::fmt::Display for GgmlType {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

impl std::str::FromStr for GgmlType {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        let found = TABLE.iter().find(|row| row.2 == name);
        found
            .map(|row| row.0)
            .ok_or_else(|| format!("unknown tensor type {name:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_is_in_the_order_of_enum_and_ids() {
        for (index, row) in TABLE.iter().enumerate() {
            assert_eq!(row.0 as usize, index, "{}", row.2);
            assert_eq!(GgmlType::from_id(row.1), Ok(row.0));
            assert_eq!(row.2.parse(), Ok(row.0));
            assert_eq!(format!("{:?}", row.0), row.2);
        }
        assert!(TABLE.windows(2).all(|pair| pair[0].1 < pair[1].1));
    }

    #[test]
    fn errors_of_removed_and_unknown_ids_explain_themselves() {
        assert!(GgmlType::from_id(4).unwrap_err().contains("removed"));
        assert!(GgmlType::from_id(31).unwrap_err().contains("Q4_0"));
        assert!(
            GgmlType::from_id(9999)
                .unwrap_err()
                .contains("unknown type 9999")
        );
    }

    #[test]
    fn only_whole_blocks_have_a_byte_size() {
        assert_eq!(GgmlType::Q4_1.bytes_for(576), Some(360));
        assert_eq!(GgmlType::Q4_1.bytes_for(31), None);
        assert_eq!(GgmlType::F64.bytes_for(u64::MAX), None);
    }
}
