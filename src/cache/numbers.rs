//! Float32 to the stored precision and back, over bytes, in blocks that stay in the first cache.
//!
//! Bytes are little-endian. Rounding is to nearest, ties to even. A value that the stored
//! precision cannot hold is reported, never stored as infinity.

use super::Dtype;
use half::f16;
use half::slice::HalfFloatSliceExt;

const BLOCK: usize = 1024;

/// Appends `values` to `out` in the stored precision.
///
/// # Errors
/// The index of the first value that is not finite once stored. What was appended is then of no
/// use.
pub fn encode(dtype: Dtype, values: &[f32], out: &mut Vec<u8>) -> Result<(), usize> {
    let start = out.len();
    out.resize(start + values.len() * dtype.bytes(), 0);
    let mut bytes = &mut out[start..];
    for (block, values) in values.chunks(BLOCK).enumerate() {
        let (now, rest) = bytes.split_at_mut(values.len() * dtype.bytes());
        bytes = rest;
        let finite = match dtype {
            Dtype::Float16 => encode_f16(values, now),
            Dtype::Bfloat16 => encode_bf16(values, now),
            Dtype::Float32 => encode_f32(values, now),
        };
        if !finite {
            let inside = values.iter().position(|v| !is_held(dtype, *v)).unwrap_or(0);
            return Err(block * BLOCK + inside);
        }
    }
    Ok(())
}

/// Whether a value is finite once stored.
fn is_held(dtype: Dtype, value: f32) -> bool {
    match dtype {
        Dtype::Float16 => f16::from_f32(value).is_finite(),
        Dtype::Bfloat16 => value.is_finite() && f32_of(bf16_bits(value)).is_finite(),
        Dtype::Float32 => value.is_finite(),
    }
}

fn encode_f16(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut halves = [f16::ZERO; BLOCK];
    let halves = &mut halves[..values.len()];
    halves.convert_from_f32_slice(values);
    let mut finite = true;
    for (half, byte) in halves.iter().zip(bytes.chunks_exact_mut(2)) {
        finite &= half.to_bits() & 0x7c00 != 0x7c00;
        byte.copy_from_slice(&half.to_le_bytes());
    }
    finite
}

/// The upper half of a float32, rounded to nearest even. Infinity for values above the largest
/// that rounds down; not for NaN, which callers refuse first.
fn bf16_bits(value: f32) -> u16 {
    let bits = value.to_bits();
    (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

fn f32_of(bf16: u16) -> f32 {
    f32::from_bits(u32::from(bf16) << 16)
}

fn encode_bf16(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut finite = true;
    for (value, byte) in values.iter().zip(bytes.chunks_exact_mut(2)) {
        let bits = bf16_bits(*value);
        finite &= value.is_finite() & (bits & 0x7f80 != 0x7f80);
        byte.copy_from_slice(&bits.to_le_bytes());
    }
    finite
}

fn encode_f32(values: &[f32], bytes: &mut [u8]) -> bool {
    let mut finite = true;
    for (value, byte) in values.iter().zip(bytes.chunks_exact_mut(4)) {
        finite &= value.is_finite();
        byte.copy_from_slice(&value.to_le_bytes());
    }
    finite
}

/// Turns stored bytes back into float32; `out` has one element for each stored number.
pub fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    assert_eq!(bytes.len(), out.len() * dtype.bytes(), "as many numbers out as there are stored");
    match dtype {
        Dtype::Float16 => {
            let mut halves = [f16::ZERO; BLOCK];
            for (bytes, out) in bytes.chunks(2 * BLOCK).zip(out.chunks_mut(BLOCK)) {
                let halves = &mut halves[..out.len()];
                for (half, byte) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
                    *half = f16::from_le_bytes([byte[0], byte[1]]);
                }
                halves.convert_to_f32_slice(out);
            }
        }
        Dtype::Bfloat16 => {
            for (value, byte) in out.iter_mut().zip(bytes.chunks_exact(2)) {
                *value = f32_of(u16::from_le_bytes([byte[0], byte[1]]));
            }
        }
        Dtype::Float32 => {
            for (value, byte) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *value = f32::from_le_bytes([byte[0], byte[1], byte[2], byte[3]]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::bf16;
    use proptest::prelude::*;

    fn stored(dtype: Dtype, value: f32) -> Result<f32, usize> {
        let mut bytes = Vec::new();
        encode(dtype, &[value], &mut bytes)?;
        let mut out = [0.0];
        decode(dtype, &bytes, &mut out);
        Ok(out[0])
    }

    #[test]
    fn ties_go_to_even() {
        // float16 has 11 significant bits: 2049 lies half-way between 2048 and 2050.
        assert_eq!(stored(Dtype::Float16, 2049.0), Ok(2048.0));
        assert_eq!(stored(Dtype::Float16, 2051.0), Ok(2052.0));
        // bfloat16 has 8: 257 lies half-way between 256 and 258.
        assert_eq!(stored(Dtype::Bfloat16, 257.0), Ok(256.0));
        assert_eq!(stored(Dtype::Bfloat16, 259.0), Ok(260.0));
        assert_eq!(stored(Dtype::Bfloat16, 257.0001), Ok(258.0));
    }

    #[test]
    fn what_overflows_is_reported_with_its_index() {
        assert_eq!(stored(Dtype::Float16, 65519.0), Ok(65504.0));
        assert_eq!(stored(Dtype::Float16, 65520.0), Err(0));
        assert_eq!(stored(Dtype::Bfloat16, f32::MAX), Err(0));
        assert_eq!(stored(Dtype::Float32, f32::MAX), Ok(f32::MAX));
        for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32] {
            for bad in [f32::NAN, -f32::NAN, f32::from_bits(0x7f80_0001), f32::NEG_INFINITY] {
                let mut values = vec![1.0; 3000];
                values[2500] = bad;
                assert_eq!(encode(dtype, &values, &mut Vec::new()), Err(2500), "{dtype:?} {bad}");
            }
        }
    }

    proptest! {
        #[test]
        fn blocks_agree_with_single_numbers(
            values in prop::collection::vec(-60000f32..60000.0, 0..3000)
        ) {
            for dtype in [Dtype::Float16, Dtype::Bfloat16, Dtype::Float32] {
                let mut bytes = vec![9u8; 3];
                prop_assert!(encode(dtype, &values, &mut bytes).is_ok());
                let mut out = vec![0.0; values.len()];
                decode(dtype, &bytes[3..], &mut out);
                for (value, out) in values.iter().zip(&out) {
                    let expected = match dtype {
                        Dtype::Float16 => f16::from_f32(*value).to_f32(),
                        Dtype::Bfloat16 => bf16::from_f32(*value).to_f32(),
                        Dtype::Float32 => *value,
                    };
                    prop_assert_eq!(expected.to_bits(), out.to_bits());
                }
            }
        }
    }
}
