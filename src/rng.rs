//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC'11).
//!
//! A number is a pure function of (seed, purpose, counter), so any rank can compute any number
//! without having computed the ones before it, and nothing depends on who computes it. Counters
//! come from (epoch, step, micro-batch) or (sample, k), never from a rank.

/// What a random number is for. Streams of different purposes never meet; the values are part of
/// what makes runs reproducible, so an existing one is never changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u64)]
pub enum Purpose {
    /// Initial weights, further keyed by parameter name.
    Init = 1,
    /// Which samples go to train, validation and test.
    Split = 2,
    /// The order of samples and micro-batches in an epoch.
    Plan = 3,
    /// Which positions ESM must not see: (position, replica, sequence).
    Mask = 4,
    /// Whether a micro-batch must predict all its PTM tokens.
    PtmDraw = 5,
    /// Dropout.
    Dropout = 6,
    /// Which part of an over-long sample is kept.
    Crop = 7,
    /// Synthetic data sets.
    Sample = 8,
    /// Which tokens of a text are predicted, and what stands there: (position, copy, sample).
    TokenMask = 9,
}

/// A key for random numbers of one purpose under one seed.
#[derive(Clone, Copy, Debug)]
pub struct Key([u32; 2]);

const MUL: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];

/// SplitMix64's finaliser: every input bit moves every output bit.
fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    x ^ (x >> 31)
}

impl Key {
    /// The key for `purpose` under the user's `seed`.
    pub fn new(seed: u64, purpose: Purpose) -> Key {
        let golden = 0x9E37_79B9_7F4A_7C15u64;
        let k = mix(mix(seed.wrapping_add(golden)).wrapping_add((purpose as u64) << 32 | 1));
        Key([k as u32, (k >> 32) as u32])
    }

    /// A further key under this one, for a name (a parameter, a file).
    pub fn named(self, name: &str) -> Key {
        let own = u64::from(self.0[0]) | u64::from(self.0[1]) << 32;
        let k = mix(own ^ xxhash_rust::xxh3::xxh3_64(name.as_bytes()));
        Key([k as u32, (k >> 32) as u32])
    }

    /// The four 32-bit numbers at a counter.
    pub fn block(self, counter: [u32; 4]) -> [u32; 4] {
        let (mut c, mut k) = (counter, self.0);
        for round in 0..10 {
            if round > 0 {
                k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
            }
            let a = u64::from(MUL[0]) * u64::from(c[0]);
            let b = u64::from(MUL[1]) * u64::from(c[2]);
            c = [
                (b >> 32) as u32 ^ c[1] ^ k[0],
                b as u32,
                (a >> 32) as u32 ^ c[3] ^ k[1],
                a as u32,
            ];
        }
        c
    }

    /// A number in [0, 1) with 24 bits, at the counter made of a 64-bit and two 32-bit parts.
    pub fn uniform(self, a: u32, b: u32, c: u64) -> f32 {
        let x = self.block([a, b, c as u32, (c >> 32) as u32])[0];
        (x >> 8) as f32 * (1.0 / 16_777_216.0)
    }

    /// A 32-bit seed for a library's generator at a counter. (libtorch's CPU generator uses the
    /// low 32 bits of its seed alone.)
    pub fn seed32(self, a: u32, b: u32, c: u64) -> i64 {
        i64::from(self.block([a, b, c as u32, (c >> 32) as u32])[0])
    }

    /// The sequence of numbers at one (a, b), for algorithms that take as many as they need.
    pub fn stream(self, a: u32, b: u32) -> Stream {
        Stream { key: self, place: [a, b], next: 0, buffer: [0; 4], left: 0 }
    }
}

/// Random numbers one after another. See [`Key::stream`].
pub struct Stream {
    key: Key,
    place: [u32; 2],
    next: u64,
    buffer: [u32; 4],
    left: usize,
}

impl Stream {
    /// 32 random bits.
    pub fn next_u32(&mut self) -> u32 {
        if self.left == 0 {
            let n = self.next;
            self.buffer =
                self.key.block([self.place[0], self.place[1], n as u32, (n >> 32) as u32]);
            self.next += 1;
            self.left = 4;
        }
        self.left -= 1;
        self.buffer[3 - self.left]
    }

    /// 64 random bits.
    pub fn next_u64(&mut self) -> u64 {
        u64::from(self.next_u32()) | u64::from(self.next_u32()) << 32
    }

    /// A number in [0, n), every one equally likely (Lemire's multiplication with rejection).
    pub fn below(&mut self, n: u64) -> u64 {
        assert!(n > 0, "a number below zero was asked for");
        loop {
            let m = u128::from(self.next_u64()) * u128::from(n);
            if m as u64 >= n.wrapping_neg() % n {
                return (m >> 64) as u64;
            }
        }
    }

    /// A number in [0, 1) with 53 bits.
    pub fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// A standard normal number (Box and Muller).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Shuffles in place (Fisher and Yates).
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, self.below(i as u64 + 1) as usize);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the Random123 distribution (kat_vectors, philox4x32 10).
    #[test]
    fn philox_known_answers() {
        let zero = Key([0, 0]).block([0; 4]);
        assert_eq!(zero, [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Key([u32::MAX; 2]).block([u32::MAX; 4]);
        assert_eq!(ones, [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
        let pi = Key([0xa409_3822, 0x299f_31d0]);
        let pi = pi.block([0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]);
        assert_eq!(pi, [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]);
    }

    #[test]
    fn moments_and_purposes() {
        let mut stream = Key::new(42, Purpose::Init).named("a.weight").stream(0, 0);
        let numbers: Vec<f64> = (0..100_000).map(|_| stream.normal()).collect();
        let mean = numbers.iter().sum::<f64>() / 1e5;
        let var = numbers.iter().map(|x| x * x).sum::<f64>() / 1e5;
        assert!(mean.abs() < 0.02 && (var - 1.0).abs() < 0.02, "{mean} {var}");
        let (a, b) = (Key::new(42, Purpose::Mask), Key::new(42, Purpose::Plan));
        assert_ne!(a.block([0; 4]), b.block([0; 4]));
    }

    #[test]
    fn a_shuffle_keeps_every_item() {
        let mut items: Vec<u32> = (0..1000).collect();
        Key::new(1, Purpose::Plan).stream(0, 0).shuffle(&mut items);
        assert_ne!(items, (0..1000).collect::<Vec<_>>());
        items.sort();
        assert_eq!(items, (0..1000).collect::<Vec<_>>());
    }
}
