//! Rotary positions (Su et al., 2021, arXiv 2104.09864) as ESM-2 uses them: the two halves of a
//! head rotate together, with frequencies 10000^(-2i/d).

use tch::{Device, Kind, Tensor};

/// Cosines and sines, each `[length, head_dim / 2]`.
pub fn tables(length: i64, head_dim: i64, device: Device) -> (Tensor, Tensor) {
    let options = (Kind::Float, device);
    let exponent = Tensor::arange_start_step(0, head_dim, 2, options) / head_dim as f64;
    let frequency = (exponent * 10000f64.ln()).exp().reciprocal();
    let angle = Tensor::arange(length, options).outer(&frequency);
    (angle.cos(), angle.sin())
}

/// Rotates x `[B, H, L, head_dim]` by its positions.
pub fn rotate(x: &Tensor, (cosine, sine): (&Tensor, &Tensor)) -> Tensor {
    let half = x.size()[3] / 2;
    let (a, b) = (x.narrow(3, 0, half), x.narrow(3, half, half));
    Tensor::cat(&[&a * cosine - &b * sine, &b * cosine + &a * sine], 3)
}
