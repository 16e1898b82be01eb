//! GGUF's types as the kernels name them.

use formats::gguf::GgmlType;
use kernels::SourceType;

/// The kernels' name of a type; none if they do not run it.
#[must_use]
pub fn source_type(dtype: GgmlType) -> Option<SourceType> {
    Some(match dtype {
        GgmlType::F32 => SourceType::F32,
        GgmlType::F16 => SourceType::F16,
        GgmlType::BF16 => SourceType::BF16,
        GgmlType::Q4_0 => SourceType::Q4_0,
        GgmlType::Q4_1 => SourceType::Q4_1,
        GgmlType::Q5_0 => SourceType::Q5_0,
        GgmlType::Q5_1 => SourceType::Q5_1,
        GgmlType::Q8_0 => SourceType::Q8_0,
        GgmlType::Q2_K => SourceType::Q2_K,
        GgmlType::Q3_K => SourceType::Q3_K,
        GgmlType::IQ4_NL => SourceType::IQ4_NL,
        GgmlType::IQ4_XS => SourceType::IQ4_XS,
        GgmlType::Q4_K => SourceType::Q4_K,
        GgmlType::Q5_K => SourceType::Q5_K,
        GgmlType::Q6_K => SourceType::Q6_K,
        _ => return None,
    })
}
