//! The rotary embedding: how rows pair up, and the scalings of `config.json` as divisors of the frequencies.

/// How the rows of the query and key weights pair up for the rotary embedding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeStyle {
    /// Neighbours 2i and 2i+1 of a head rotate together. GGUF files of architecture `llama` store the query and key
    /// rows in this order: row 2i of a head is Hugging Face's row i, row 2i+1 its row i + head_dim/2. An adapter in
    /// PEFT's layout must have the rows of B for q_proj and k_proj reordered likewise.
    Interleaved,
    /// Elements i and i + head_dim/2 rotate together, as in Hugging Face's layout.
    HalfSplit,
}

/// Llama 3.1's scaling: low frequencies are divided by `factor`, high ones stay, those between are blended.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Llama3 {
    pub factor: f64,
    pub low_freq_factor: f64,
    pub high_freq_factor: f64,
    /// Positions that the model was trained for before it was scaled.
    pub original_context: f64,
}

impl Llama3 {
    /// The divisors of the `head_dim / 2` frequencies `theta^(-2i / head_dim)`.
    ///
    /// The source is `_compute_llama3_parameters` of transformers (`modeling_rope_utils.py`), which computes new frequencies;
    /// these are the old ones over the new ones.
    pub fn divisors(&self, head_dim: usize, theta: f64) -> Vec<f32> {
        let longest = self.original_context / self.low_freq_factor;
        let shortest = self.original_context / self.high_freq_factor;
        let divisor = |i: usize| {
            let frequency = theta.powf(-2.0 * i as f64 / head_dim as f64);
            let wavelength = std::f64::consts::TAU / frequency;
            if wavelength > longest {
                return self.factor;
            }
            if wavelength < shortest {
                return 1.0;
            }
            let smooth = (self.original_context / wavelength - self.low_freq_factor)
                / (self.high_freq_factor - self.low_freq_factor);
            1.0 / ((1.0 - smooth) / self.factor + smooth)
        };
        (0..head_dim / 2).map(|i| divisor(i) as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn high_frequencies_stay_and_low_ones_are_divided() {
        // Llama 3.1 8B; the published conversions to GGUF hold these divisors: 1 up to pair 28, 8 from pair 35.
        let scaling = Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        };
        let divisors = scaling.divisors(128, 500_000.0);
        assert_eq!(divisors.len(), 64);
        assert!(divisors[..29].iter().all(|d| *d == 1.0));
        assert!(divisors[35..].iter().all(|d| *d == 8.0));
        assert!(divisors.windows(2).all(|pair| pair[0] <= pair[1]));
        // Worked by hand: a wavelength of 2401, 8192 / 2401 = 3.41, so 0.804 of the old frequency and 0.196 of an eighth of it.
        assert!((divisors[29] - 1.207).abs() < 0.005, "{}", divisors[29]);
    }
}
