//! The selective scan of Mamba (Gu and Dao, 2023, arXiv 2312.00752) with its gate and skip:
//!
//!   delta = softplus(dt + dt_bias),  A = -exp(a_log)
//!   s_t = exp(delta_t A) s_(t-1) + delta_t u_t B_t,  y_t = (<s_t, C_t> + d u_t) silu(z_t)
//!
//! The reference spells this out in tensor operations, one token after another. Fused kernels do
//! the same with their own backward, on the CPU (`torch/cpp/kernels.cpp`) and on a GPU
//! (`torch/cuda/scan.cu`); so for the convolution before it. Other devices take the references.

use crate::torch::{self, ScanInput};
use tch::{Device, Kind, Tensor};

/// `[B, L, D]` from inputs as [`ScanInput`] describes them: the fused kernel where there is one.
pub fn scan(x: &ScanInput) -> Tensor {
    if has_kernels(x.u) && x.b.size()[2] <= 64 {
        return torch::selective_scan(x).expect("shapes are the model's own");
    }
    reference(x)
}

fn has_kernels(x: &Tensor) -> bool {
    matches!(x.device(), Device::Cpu | Device::Cuda(_)) && x.kind() == Kind::Float
}

/// The same by its definition.
pub fn reference(x: &ScanInput) -> Tensor {
    let (batch, length, channels) = x.u.size3().expect("u is [B, L, D]");
    let states = x.b.size()[2];
    let delta = (x.dt + x.dt_bias).softplus();
    let a = -x.a_log.exp();
    let mut state = Tensor::zeros([batch, channels, states], (x.u.kind(), x.u.device()));
    let mut outputs = Vec::with_capacity(length as usize);
    for t in 0..length {
        let delta_t = delta.select(1, t).unsqueeze(-1);
        let input = &delta_t * x.u.select(1, t).unsqueeze(-1) * x.b.select(1, t).unsqueeze(1);
        state = (&delta_t * &a).exp() * state + input;
        let dims = [-1i64];
        let sum = (&state * x.c.select(1, t).unsqueeze(1)).sum_dim_intlist(
            dims.as_slice(),
            false,
            None::<Kind>,
        );
        outputs.push(sum);
    }
    (Tensor::stack(&outputs, 1) + x.d * x.u) * x.z.silu()
}

/// SiLU of the depthwise causal convolution of x `[B, L, D]`; weight `[D, 1, W]`, bias `[D]`.
pub fn causal_conv(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    if has_kernels(x) && weight.size()[2] <= 8 {
        return torch::causal_conv(x, weight, bias).expect("shapes are the model's own");
    }
    causal_conv_reference(x, weight, bias)
}

/// The same by the library's convolution: padded on both sides, the tail cut off.
pub fn causal_conv_reference(x: &Tensor, weight: &Tensor, bias: &Tensor) -> Tensor {
    let (length, channels, width) = (x.size()[1], x.size()[2], weight.size()[2]);
    x.transpose(1, 2)
        .conv1d(weight, Some(bias), 1, width - 1, 1, channels)
        .narrow(2, 0, length)
        .transpose(1, 2)
        .silu()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The CPU, or what `TRAINER_TEST_DEVICE` says (`cuda`).
    fn device() -> Device {
        match std::env::var("TRAINER_TEST_DEVICE").as_deref() {
            Ok("cuda") => {
                torch::cuda::load().unwrap();
                Device::Cuda(0)
            }
            _ => Device::Cpu,
        }
    }

    fn random(shape: &[i64], scale: f64) -> Tensor {
        let x = Tensor::randn(shape, (Kind::Float, Device::Cpu)) * scale;
        x.to_device(device()).set_requires_grad(true)
    }

    /// Largest difference relative to the largest element.
    fn deviation(a: &Tensor, b: &Tensor) -> f64 {
        let scale = b.abs().max().double_value(&[]).max(1e-30);
        (a - b).abs().max().double_value(&[]) / scale
    }

    fn compare(shape: (i64, i64, i64, i64)) {
        let (batch, length, channels, states) = shape;
        tch::manual_seed(7);
        let inputs = [
            random(&[batch, length, channels], 1.0),
            random(&[batch, length, channels], 2.0),
            random(&[channels], 1.0),
            random(&[channels, states], 1.0),
            random(&[batch, length, states], 1.0),
            random(&[batch, length, states], 1.0),
            random(&[channels], 1.0),
            random(&[batch, length, channels], 1.0),
        ];
        let input =
            |x: &[Tensor; 8]| -> [Tensor; 8] { std::array::from_fn(|i| x[i].shallow_clone()) };
        let cotangent = Tensor::randn([batch, length, channels], (Kind::Float, device()));
        let run = |fused: bool| {
            let x = input(&inputs);
            let [u, dt, dt_bias, a_log, b, c, d, z] = &x;
            let x = ScanInput { u, dt, dt_bias, a_log, b, c, d, z };
            let y = if fused { torch::selective_scan(&x).unwrap() } else { reference(&x) };
            let loss = (&y * &cotangent).sum(Kind::Float);
            let grads = Tensor::run_backward(&[loss], &inputs, false, false);
            (y.detach(), grads)
        };
        let ((y, grads), (expected, expected_grads)) = (run(true), run(false));
        assert!(deviation(&y, &expected) < 1e-5, "{shape:?}: forward {}", deviation(&y, &expected));
        for (i, (g, e)) in grads.iter().zip(&expected_grads).enumerate() {
            assert!(deviation(g, e) < 3e-5, "{shape:?}: gradient {i} {}", deviation(g, e));
        }
        let x = input(&inputs);
        let [u, dt, dt_bias, a_log, b, c, d, z] = &x;
        let inference = tch::no_grad(|| scan(&ScanInput { u, dt, dt_bias, a_log, b, c, d, z }));
        assert_eq!(inference, y, "inference and training differ");
    }

    #[test]
    fn the_fused_scan_is_the_reference() {
        for shape in
            [(2, 33, 48, 16), (1, 1, 16, 16), (3, 70, 20, 4), (2, 65, 150, 16), (1, 40, 3, 5)]
        {
            compare(shape);
        }
    }

    #[test]
    fn the_fused_convolution_is_the_library_s() {
        tch::manual_seed(8);
        for (batch, length, channels, width) in [(2, 33, 48, 4), (1, 2, 5, 4), (3, 17, 20, 3)] {
            let x = random(&[batch, length, 2 * channels], 1.0);
            let weight = random(&[channels, 1, width], 1.0);
            let bias = random(&[channels], 1.0);
            let cotangent = Tensor::randn([batch, length, channels], (Kind::Float, device()));
            let run = |f: fn(&Tensor, &Tensor, &Tensor) -> Tensor| {
                let y = f(&x.narrow(2, channels, channels), &weight, &bias);
                let loss = (&y * &cotangent).sum(Kind::Float);
                let leaves = [&x, &weight, &bias];
                (y.detach(), Tensor::run_backward(&[loss], &leaves, false, false))
            };
            let ((y, grads), (expected, expected_grads)) =
                (run(causal_conv), run(causal_conv_reference));
            assert!(deviation(&y, &expected) < 1e-5);
            for (g, e) in grads.iter().zip(&expected_grads) {
                assert!(deviation(g, e) < 2e-5, "{}", deviation(g, e));
            }
        }
    }

    #[test]
    fn kernels_run_on_all_threads() {
        tch::set_num_threads(2);
        assert_eq!(torch::parallel_width(), 2);
    }
}
