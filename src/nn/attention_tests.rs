//! Attention, dropout and their neighbours against the same by plain tensor operations.

use super::attention::{add_norm, attention, dropout, linear_gelu};
use super::{Linear, Norm};
use std::sync::{Mutex, MutexGuard};
use tch::{Device, Kind, Tensor};

const OPTIONS: (Kind, Device) = (Kind::Float, Device::Cpu);

/// The default generator and the number of threads belong to the whole process: tests that use
/// them run one at a time.
fn alone() -> MutexGuard<'static, ()> {
    static LOCK: Mutex<()> = Mutex::new(());
    LOCK.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn random(shape: &[i64]) -> Tensor {
    Tensor::randn(shape, OPTIONS)
}

fn leaf(shape: &[i64]) -> Tensor {
    random(shape).set_requires_grad(true)
}

fn largest_of(x: &Tensor) -> f64 {
    if x.numel() == 0 { 0.0 } else { x.abs().max().double_value(&[]) }
}

/// Largest difference relative to the largest element.
fn deviation(a: &Tensor, b: &Tensor) -> f64 {
    assert_eq!(a.size(), b.size());
    largest_of(&(a - b)) / largest_of(b).max(1e-30)
}

/// A result, and the gradients of its product with a fixed cotangent.
fn with_gradients(y: &Tensor, leaves: &[&Tensor]) -> (Tensor, Vec<Tensor>) {
    let places = Tensor::arange(y.numel() as i64, OPTIONS).view_as(y);
    let loss = (y * (places * 0.7).sin()).sum(Kind::Float);
    (y.detach(), Tensor::run_backward(&[loss], leaves, false, false))
}

/// Attention by its definition, its weights times `factors` (None: 1).
fn plain(
    (q, k, v): (&Tensor, &Tensor, &Tensor),
    lengths: Option<&Tensor>,
    factors: Option<&Tensor>,
) -> Tensor {
    let scores = q.matmul(&k.transpose(2, 3)) / (q.size()[3] as f64).sqrt();
    let weights = match lengths {
        None => scores.softmax(-1, None::<Kind>),
        Some(lengths) => {
            let places = Tensor::arange(k.size()[2], (Kind::Int64, Device::Cpu));
            let unseen = places.ge_tensor(&lengths.view([-1, 1, 1, 1]));
            let nothing = lengths.le(0).view([-1, 1, 1, 1]);
            let weights = scores.masked_fill(&unseen, f64::NEG_INFINITY).softmax(-1, None::<Kind>);
            weights.masked_fill(&nothing, 0.0)
        }
    };
    factors.map_or(weights.shallow_clone(), |f| &weights * f).matmul(v)
}

/// The factors (0 or the scale) that a call's weights had: `v` = identity makes the result the
/// weights themselves. The head must be as wide as there are keys.
fn factors(q: &Tensor, k: &Tensor, p: f64, seed: i64) -> Tensor {
    let (batch, heads, keys) = (k.size()[0], k.size()[1], k.size()[2]);
    assert_eq!(keys, k.size()[3]);
    let identity = Tensor::eye(keys, OPTIONS).expand([batch, heads, keys, keys], false);
    tch::manual_seed(seed);
    let dropped = tch::no_grad(|| attention(q, k, &identity, None, p).unwrap());
    let whole = tch::no_grad(|| attention(q, k, &identity, None, 0.0).unwrap());
    dropped / whole
}

#[test]
fn without_dropout_it_is_the_definition() {
    let _alone = alone();
    tch::manual_seed(1);
    let shapes = [(2, 3, 1, 1, 64), (3, 2, 7, 7, 64), (2, 2, 64, 64, 64), (2, 1, 129, 129, 64)];
    let others = [(2, 2, 5, 33, 24), (1, 2, 40, 3, 80), (2, 1, 33, 70, 7), (2, 2, 31, 16, 1)];
    for (batch, heads, queries, keys, d) in shapes.into_iter().chain(others) {
        let q = leaf(&[batch, heads, queries, d]);
        let [k, v] = std::array::from_fn(|_| leaf(&[batch, heads, keys, d]));
        // The first row sees nothing, the last sees more than there is.
        let mut seen: Vec<i64> = (0..batch).map(|b| b * keys / (batch - 1).max(1)).collect();
        seen[batch as usize - 1] += 1;
        let lengths = Tensor::from_slice(&seen);
        for lengths in [None, Some(&lengths)] {
            let leaves = [&q, &k, &v];
            let y = attention(&q, &k, &v, lengths, 0.0).unwrap();
            let (y, grads) = with_gradients(&y, &leaves);
            let (expected, expected_grads) =
                with_gradients(&plain((&q, &k, &v), lengths, None), &leaves);
            let shape = (batch, heads, queries, keys, d, lengths.is_some());
            assert!(deviation(&y, &expected) < 2e-6, "{shape:?}: {}", deviation(&y, &expected));
            // A row without keys is 0/0 in the plain gradients. With one key those of q and k
            // are zero but for rounding, so what counts is the largest of the three.
            let expected_grads: Vec<Tensor> =
                expected_grads.iter().map(|e| e.nan_to_num(0.0, None, None)).collect();
            let largest = expected_grads.iter().map(largest_of).fold(0.0, f64::max);
            for (i, (g, e)) in grads.iter().zip(&expected_grads).enumerate() {
                let off = largest_of(&(g - e)) / largest;
                assert!(off < 2e-6, "{shape:?}: gradient {i} {off}");
            }
            let inference = tch::no_grad(|| attention(&q, &k, &v, lengths, 0.0).unwrap());
            assert_eq!(inference, y, "inference and training differ");
        }
    }
}

#[test]
fn rows_without_keys_are_zero_and_padding_is_finite() {
    let _alone = alone();
    tch::manual_seed(2);
    let [q, k, v] = std::array::from_fn(|_| leaf(&[3, 2, 9, 16]));
    let lengths = Tensor::from_slice(&[0i64, 4, 9]);
    // What lies beyond a row's length has no influence, be it NaN.
    let beyond =
        Tensor::arange(9, (Kind::Int64, Device::Cpu)).ge_tensor(&lengths.view([-1, 1, 1, 1]));
    let spoilt = |x: &Tensor| x.masked_fill(&beyond.transpose(2, 3), f64::NAN);
    for p in [0.0, 0.3] {
        tch::manual_seed(3);
        let y = attention(&q, &k, &v, Some(&lengths), p).unwrap();
        assert_eq!(y.get(0).abs().max().double_value(&[]), 0.0);
        let (y, grads) = with_gradients(&y, &[&q, &k, &v]);
        assert!(y.isfinite().all().int64_value(&[]) == 1);
        for g in &grads {
            assert!(g.isfinite().all().int64_value(&[]) == 1);
            assert_eq!(g.get(0).abs().max().double_value(&[]), 0.0);
        }
        assert_eq!(grads[1].get(1).narrow(1, 4, 5).abs().max().double_value(&[]), 0.0);
        tch::manual_seed(3);
        let other = attention(&q, &spoilt(&k), &spoilt(&v), Some(&lengths), p).unwrap();
        assert_eq!(other, y);
    }
}

#[test]
fn a_number_that_is_none_stays_none() {
    let _alone = alone();
    for poison in [f64::NAN, f64::INFINITY] {
        let [q, k, v] = std::array::from_fn(|_| random(&[1, 1, 40, 16]));
        let _ = q.get(0).get(0).get(35).fill_(poison);
        for p in [0.0, 0.2] {
            let y = attention(&q, &k, &v, None, p).unwrap();
            let bad = y.isnan().any_dim(3, false).view([-1]);
            let rows: Vec<bool> = Vec::try_from(bad).unwrap();
            let expected: Vec<bool> = (0..40).map(|i| i == 35).collect();
            assert_eq!(rows, expected, "{poison}, {p}");
        }
    }
}

#[test]
fn with_dropout_it_is_the_definition_under_the_same_mask() {
    let _alone = alone();
    for (batch, heads, queries, keys, p) in
        [(2, 3, 64, 64, 0.1), (1, 2, 129, 129, 0.5), (3, 1, 7, 33, 0.25), (2, 2, 1, 16, 0.9)]
    {
        tch::manual_seed(4);
        let q = leaf(&[batch, heads, queries, keys]);
        let [k, v] = std::array::from_fn(|_| leaf(&[batch, heads, keys, keys]));
        let mask = factors(&q, &k, p, 5);
        let leaves = [&q, &k, &v];
        tch::manual_seed(5);
        let y = attention(&q, &k, &v, None, p).unwrap();
        let (y, grads) = with_gradients(&y, &leaves);
        let (expected, expected_grads) =
            with_gradients(&plain((&q, &k, &v), None, Some(&mask)), &leaves);
        assert!(deviation(&y, &expected) < 3e-6, "{}", deviation(&y, &expected));
        for (g, e) in grads.iter().zip(&expected_grads) {
            assert!(deviation(g, e) < 5e-6, "{}", deviation(g, e));
        }
    }
}

/// Asserts that so many of `n` are within four standard deviations of the share p.
fn assert_share(dropped: f64, n: f64, p: f64, what: &str) {
    let sigma = (n * p * (1.0 - p)).sqrt();
    assert!((dropped - n * p).abs() < 4.0 * sigma, "{what}: {dropped} of {n} at {p}");
}

#[test]
fn attention_drops_the_right_share_and_keeps_the_mean() {
    let _alone = alone();
    tch::manual_seed(6);
    let (batch, heads, keys) = (4, 8, 128);
    let [q, k] = std::array::from_fn(|_| random(&[batch, heads, keys, keys]));
    for p in [0.1, 0.5] {
        let mask = factors(&q, &k, p, 7);
        let dropped = mask.eq(0.0);
        let total = dropped.sum(Kind::Int64).double_value(&[]);
        assert_share(total, mask.numel() as f64, p, "all");
        let scale = mask.max().double_value(&[]);
        assert!((scale - 1.0 / (1.0 - p)).abs() < 1e-4, "{scale}");
        assert!((mask.mean(Kind::Float).double_value(&[]) - 1.0).abs() < 0.01);
        // Along each axis alone, too, and no two neighbours hang together.
        for axis in 0..4i64 {
            let line = dropped.select(axis, 1);
            let n = line.numel() as f64;
            assert_share(line.sum(Kind::Int64).double_value(&[]), n, p, &format!("axis {axis}"));
            let along = |from| dropped.narrow(axis, from, mask.size()[axis as usize] - 1);
            let both = along(0).logical_and(&along(1));
            let n = both.numel() as f64;
            let what = format!("neighbours along {axis}");
            // Overlapping pairs share members: the deviation is up to twice that of free ones.
            let sigma = (n * p * p).sqrt();
            let found = both.sum(Kind::Int64).double_value(&[]);
            assert!((found - n * p * p).abs() < 8.0 * sigma, "{what}: {found} of {n}");
        }
    }
}

#[test]
fn dropout_drops_the_right_share_and_its_gradient_has_the_same_mask() {
    let _alone = alone();
    for (shape, p) in [(vec![100_000i64], 0.1), (vec![37, 5, 1001], 0.5), (vec![64, 33], 0.9)] {
        let x = Tensor::ones(&shape, OPTIONS).set_requires_grad(true);
        tch::manual_seed(8);
        let y = dropout(&x, p).unwrap();
        let n = y.numel() as f64;
        assert_share(y.eq(0.0).sum(Kind::Int64).double_value(&[]), n, p, "dropout");
        let scale = y.max().double_value(&[]);
        assert!((scale * (1.0 - p) - 1.0).abs() < 2e-4, "{scale}");
        assert_eq!(y.eq(0.0).logical_or(&y.eq(scale)).all().int64_value(&[]), 1);
        let cotangent = random(&shape);
        let loss = (&y * &cotangent).sum(Kind::Float);
        let grad = Tensor::run_backward(&[loss], &[&x], false, false).remove(0);
        assert_eq!(grad, y.detach() * cotangent);
    }
    let x = random(&[3, 4]);
    assert_eq!(dropout(&x, 0.0).unwrap().data_ptr(), x.data_ptr());
    let empty = random(&[0, 4]);
    assert_eq!(dropout(&empty, 0.5).unwrap().size(), [0, 4]);
}

#[test]
fn a_probability_that_is_none_is_refused() {
    let x = random(&[2, 2]);
    for p in [-0.1, 1.0, f64::NAN] {
        assert_eq!(dropout(&x, p).unwrap_err().code(), 2);
    }
}

#[test]
fn bits_follow_the_generator_and_not_the_threads() {
    let _alone = alone();
    tch::manual_seed(9);
    let [q, k, v] = std::array::from_fn(|_| leaf(&[3, 4, 70, 64]));
    let norm = Norm::Layer { weight: leaf(&[64]), bias: leaf(&[64]), eps: 1e-5 };
    let lengths = Tensor::from_slice(&[70i64, 1, 33]);
    let run = |threads: i32, seed: i64| -> Vec<Tensor> {
        tch::set_num_threads(threads);
        tch::manual_seed(seed);
        let y = attention(&q, &k, &v, Some(&lengths), 0.2).unwrap();
        let y = add_norm(&dropout(&y, 0.3).unwrap(), &q, &norm, 0.1).unwrap();
        let (y, mut all) = with_gradients(&y, &[&q, &k, &v]);
        all.push(y);
        all
    };
    let (two, again, one, other) = (run(2, 10), run(2, 10), run(1, 10), run(2, 11));
    tch::set_num_threads(2);
    for i in 0..two.len() {
        assert_eq!(two[i], again[i], "the same seed gives other bits");
        assert_eq!(two[i], one[i], "one thread gives other bits than two");
        assert_ne!(two[i], other[i], "another seed gives the same bits");
    }
}

#[test]
fn the_residual_s_norm_is_the_library_s() {
    let _alone = alone();
    tch::manual_seed(12);
    for (rows, d) in [(1, 1), (7, 16), (65, 768), (33, 100), (4, 4099)] {
        let [x, residual] = std::array::from_fn(|_| leaf(&[rows, d]));
        let (weight, bias) = (leaf(&[d]), leaf(&[d]));
        let norm =
            Norm::Layer { weight: weight.shallow_clone(), bias: bias.shallow_clone(), eps: 1e-5 };
        for p in [0.0, 0.4] {
            let leaves = [&x, &residual, &weight, &bias];
            tch::manual_seed(13);
            let y = add_norm(&x, &residual, &norm, p).unwrap();
            let (y, grads) = with_gradients(&y, &leaves);
            // Where nothing is learnt from x its gradient is the mask times the residual's.
            let mask = (&grads[0] / &grads[1]).nan_to_num(0.0, Some(0.0), Some(0.0));
            let mask =
                if p > 0.0 { mask.gt(0.5).to_kind(Kind::Float) / 0.6 } else { mask.ones_like() };
            let expected = norm.forward(&(&x * mask + &residual));
            let (expected, expected_grads) = with_gradients(&expected, &leaves);
            if d == 1 {
                // The norm of one number is its bias.
                assert_eq!(y, expected);
                continue;
            }
            assert!(
                deviation(&y, &expected) < 2e-5,
                "{rows} {d} {p}: {}",
                deviation(&y, &expected)
            );
            for (i, (g, e)) in grads.iter().zip(&expected_grads).enumerate() {
                assert!(deviation(g, e) < 1e-4, "{rows} {d} {p} {i}: {}", deviation(g, e));
            }
        }
    }
}

#[test]
fn the_gelu_behind_a_linear_layer_is_the_library_s() {
    let _alone = alone();
    tch::manual_seed(14);
    for (rows, inputs, outputs) in [(1, 3, 5), (70, 16, 64), (33, 8, 100)] {
        let x = leaf(&[2, rows, inputs]);
        let linear = Linear { weight: leaf(&[outputs, inputs]), bias: Some(leaf(&[outputs])) };
        let leaves = [&x, &linear.weight, linear.bias.as_ref().unwrap()];
        let (y, grads) = with_gradients(&linear_gelu(&x, &linear).unwrap(), &leaves);
        let (expected, expected_grads) = with_gradients(&linear.forward(&x).gelu("none"), &leaves);
        assert!(deviation(&y, &expected) < 2e-6, "{}", deviation(&y, &expected));
        for (g, e) in grads.iter().zip(&expected_grads) {
            assert!(deviation(g, e) < 3e-6, "{}", deviation(g, e));
        }
    }
}
