//! The angles of rotary position embeddings (Su et al., RoFormer, 2021).

/// `position * theta^(-2i / head_dim)`, divided by pair i's factor if there are factors: position > pair, in f64.
pub fn angles(
    head_dim: usize,
    positions: usize,
    theta: f32,
    factors: Option<&[f32]>,
) -> impl Iterator<Item = f64> {
    let half = head_dim / 2;
    (0..positions * half).map(move |i| {
        let (position, pair) = (i / half, i % half);
        let factor = factors.map_or(1.0, |f| f64::from(f[pair]));
        position as f64 * f64::from(theta).powf(-2.0 * pair as f64 / head_dim as f64) / factor
    })
}
