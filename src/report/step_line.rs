//! The line a step prints, and how numbers, times and sizes are written everywhere.

use serde_json::{Map, Value, json};
use std::collections::VecDeque;
use std::fmt;

/// What happened since the last line.
#[derive(Clone, Debug, Default)]
pub struct StepReport {
    /// The last step done, from 1.
    pub step: u64,
    /// The last step there will be.
    pub total_steps: u64,
    /// Passes over the data so far, with fraction.
    pub epoch: f64,
    /// Steps that this report covers (`training.logging_steps`); at least 1.
    pub steps: u64,
    /// Mean loss over what was predicted; `None` where nothing was or the step was skipped.
    pub loss: Option<f64>,
    /// Learning rate of the last step.
    pub lr: f64,
    /// Norm of the reduced gradient before clipping, of the last step that had one.
    pub grad_norm: Option<f64>,
    /// Real tokens of all ranks, padding not counted.
    pub tokens: u64,
    /// The same with padding: what was computed.
    pub padded_tokens: u64,
    /// Seconds that the steps took.
    pub seconds: f64,
    /// Of these, seconds spent waiting for data.
    pub waiting_seconds: f64,
    /// Memory in use (resident, or the device's), in bytes.
    pub memory_bytes: Option<u64>,
    /// Steps of the whole run that were skipped as non-finite or empty.
    pub skipped: u64,
    /// Seconds left, from [`TimeLeft`].
    pub seconds_left: Option<f64>,
    /// Further figures in the order they are printed: `acc`, `ptm_acc`, `act_bs`, `loss_scale`.
    pub figures: Vec<(String, f64)>,
}

impl StepReport {
    /// Share of the computed tokens that were padding, 0 to 1.
    pub fn padding(&self) -> f64 {
        match self.padded_tokens {
            0 => 0.0,
            padded => 1.0 - self.tokens as f64 / padded as f64,
        }
    }

    /// The `train` record of `metrics.jsonl` (numbers that are not finite become null).
    pub fn record(&self) -> Value {
        let mut record = Map::new();
        let mut put = |key: &str, value: Value| record.insert(key.to_string(), value);
        put("kind", json!("train"));
        put("step", json!(self.step));
        put("epoch", json!(self.epoch));
        put("loss", json!(self.loss));
        put("lr", json!(self.lr));
        put("norm", json!(self.grad_norm));
        for (name, value) in &self.figures {
            put(name, json!(value));
        }
        put("steps", json!(self.steps));
        put("tokens", json!(self.tokens));
        put("padded_tokens", json!(self.padded_tokens));
        put("seconds", json!(self.seconds));
        put("waiting_seconds", json!(self.waiting_seconds));
        put("memory_bytes", json!(self.memory_bytes));
        put("skipped", json!(self.skipped));
        Value::Object(record)
    }
}

/// `step 120/5000 | epoch 0.42 | loss 2.3145 | lr 2.00e-4 | norm 0.83 | 61.2k tok/s | pad 7%`
/// and so on.
impl fmt::Display for StepReport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}/{} | epoch {:.2}", self.step, self.total_steps, self.epoch)?;
        match self.loss {
            Some(loss) => write!(f, " | loss {loss:.4}")?,
            None => write!(f, " | loss -")?,
        }
        for (name, value) in &self.figures {
            write!(f, " | {name} {}", figure(*value))?;
        }
        write!(f, " | lr {:.2e}", self.lr)?;
        if let Some(norm) = self.grad_norm {
            match (0.01..1e4).contains(&norm) {
                true => write!(f, " | norm {norm:.2}")?,
                false => write!(f, " | norm {}", figure(norm))?,
            }
        }
        write!(f, " | {} tok/s", rate(self.tokens as f64 / self.seconds))?;
        write!(f, " | pad {:.0}%", 100.0 * self.padding())?;
        write!(f, " | wait {}", percent(self.waiting_seconds, self.seconds))?;
        write!(f, " | {}", duration(self.seconds / self.steps.max(1) as f64))?;
        if let Some(left) = self.seconds_left {
            write!(f, " | left {}", duration(left))?;
        }
        if let Some(memory) = self.memory_bytes {
            write!(f, " | mem {}", bytes(memory))?;
        }
        if self.skipped > 0 {
            write!(f, " | skipped {}", self.skipped)?;
        }
        Ok(())
    }
}

/// Time left, from the mean pace of the recent steps.
#[derive(Clone, Debug)]
pub struct TimeLeft {
    recent: VecDeque<(u64, f64)>,
    window: usize,
}

impl TimeLeft {
    /// Looks back over the last `window` reports (at least one).
    pub fn new(window: usize) -> Self {
        TimeLeft { recent: VecDeque::new(), window: window.max(1) }
    }

    /// Notes that so many steps took so many seconds.
    pub fn observe(&mut self, steps: u64, seconds: f64) {
        if self.recent.len() == self.window {
            self.recent.pop_front();
        }
        self.recent.push_back((steps, seconds));
    }

    /// Seconds that so many further steps will take; `None` before anything was seen.
    pub fn left(&self, steps: u64) -> Option<f64> {
        let (done, seconds) =
            self.recent.iter().fold((0, 0.0), |(n, s), (steps, took)| (n + steps, s + took));
        (done > 0).then(|| steps as f64 * seconds / done as f64)
    }
}

/// A count: to the last one below ten million (`950`, `61,249`), then `12.3M`, `1.5G`.
pub fn count(n: u64) -> String {
    if n >= 10_000_000 {
        return scaled(n as f64);
    }
    let digits = n.to_string();
    let mut text = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

/// A count with its noun: `1 rank`, `2 ranks`.
pub fn counted(n: u64, noun: &str) -> String {
    format!("{} {noun}{}", count(n), if n == 1 { "" } else { "s" })
}

/// A rate: like [`count`], with one decimal below 10; `?` where it is not finite.
pub fn rate(per_second: f64) -> String {
    if !per_second.is_finite() {
        "?".to_string()
    } else if per_second < 9.95 {
        format!("{per_second:.1}")
    } else if per_second < 999.5 {
        format!("{per_second:.0}")
    } else {
        scaled(per_second)
    }
}

fn scaled(mut value: f64) -> String {
    let mut unit = "";
    for next in ["k", "M", "G", "T", "P"] {
        value /= 1000.0;
        unit = next;
        if value < 999.95 {
            break;
        }
    }
    format!("{value:.1}{unit}")
}

/// Bytes in decimal units: `512 B`, `48.0 kB`, `1.2 GB`.
pub fn bytes(n: u64) -> String {
    if n < 1000 {
        return format!("{n} B");
    }
    let text = scaled(n as f64);
    let (value, unit) = text.split_at(text.len() - 1);
    format!("{value} {unit}B")
}

/// A time in seconds: `0 s`, `0.4 ms`, `412 ms`, `4.2 s`, `3m12s`, `1h02m`, `3d04h`; `?` where it is not
/// a time.
pub fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_string();
    }
    let whole = seconds.round() as u64;
    if seconds == 0.0 {
        "0 s".to_string()
    } else if seconds < 0.00995 {
        format!("{:.1} ms", seconds * 1e3)
    } else if seconds < 0.9995 {
        format!("{:.0} ms", seconds * 1e3)
    } else if seconds < 59.95 {
        format!("{seconds:.1} s")
    } else if whole < 3600 {
        format!("{}m{:02}s", whole / 60, whole % 60)
    } else {
        let minutes = (seconds / 60.0).round() as u64;
        let hours = (seconds / 3600.0).round() as u64;
        match minutes < 24 * 60 {
            true => format!("{}h{:02}m", minutes / 60, minutes % 60),
            false => format!("{}d{:02}h", hours / 24, hours % 24),
        }
    }
}

/// A share of a whole: `7%`; `?` where there is no whole.
pub fn percent(part: f64, whole: f64) -> String {
    match whole > 0.0 {
        true => format!("{:.0}%", 100.0 * part / whole),
        false => "?".to_string(),
    }
}

/// Any figure in few characters: `0.83`, `0.3312`, `128`, `1.20e6`. Whole numbers stay whole.
pub fn figure(value: f64) -> String {
    let size = value.abs();
    if !value.is_finite() || (value.fract() == 0.0 && size < 1e5) {
        format!("{value}")
    } else if !(1e-3..1e5).contains(&size) {
        format!("{value:.2e}")
    } else if size < 0.1 {
        format!("{value:.4}")
    } else if size < 10.0 {
        format!("{value:.3}")
    } else {
        format!("{value:.1}")
    }
}

/// Bytes of this process that are in memory now; `None` where `/proc` does not say.
///
/// Read from `VmRSS`, which the kernel gives in KiB: `statm` counts pages, whose size differs
/// between machines.
pub fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn report() -> StepReport {
        StepReport {
            step: 120,
            total_steps: 5000,
            epoch: 0.4216,
            steps: 1,
            loss: Some(2.31449),
            lr: 2e-4,
            grad_norm: Some(0.8312),
            tokens: 25_214,
            padded_tokens: 27_112,
            seconds: 0.412,
            waiting_seconds: 0.001,
            memory_bytes: Some(1_234_567_890),
            seconds_left: Some(3720.0),
            ..StepReport::default()
        }
    }

    #[test]
    fn the_line() {
        let line = "step 120/5000 | epoch 0.42 | loss 2.3145 | lr 2.00e-4 | norm 0.83 | \
                    61.2k tok/s | pad 7% | wait 0% | 412 ms | left 1h02m | mem 1.2 GB";
        assert_eq!(report().to_string(), line);
        let mut skipped = StepReport { loss: None, grad_norm: None, skipped: 2, ..report() };
        skipped.figures.push(("acc".into(), 0.25));
        let text = skipped.to_string();
        assert!(text.contains("| loss - | acc 0.250 | lr"), "{text}");
        assert!(text.ends_with("| skipped 2"), "{text}");
    }

    #[test]
    fn nothing_measured_prints_no_nonsense() {
        let line = StepReport::default().to_string();
        assert!(!line.contains("NaN") && !line.contains("inf"), "{line}");
    }

    #[test]
    fn the_record_is_valid_json_whatever_the_numbers() {
        let mut bad = StepReport { loss: Some(f64::NAN), ..report() };
        bad.figures.push(("acc".into(), f64::INFINITY));
        let record: Value = serde_json::from_str(&bad.record().to_string()).unwrap();
        assert_eq!((&record["loss"], &record["acc"]), (&Value::Null, &Value::Null));
        assert_eq!((&record["kind"], &record["step"]), (&json!("train"), &json!(120)));
        assert_eq!(record["lr"].as_f64(), Some(2e-4));
    }

    #[test]
    fn units_change_where_rounding_does() {
        let counts = [(0, "0"), (999, "999"), (1000, "1,000"), (61_249, "61,249")];
        let more = [(9_999_999, "9,999,999"), (10_000_000, "10.0M"), (999_950_000, "1.0G")];
        for (n, text) in counts.into_iter().chain(more) {
            assert_eq!(count(n), text);
        }
        for (n, text) in [(999, "999 B"), (48_000, "48.0 kB"), (1_234_567_890, "1.2 GB")] {
            assert_eq!(bytes(n), text);
        }
        for (x, text) in [(3.24, "3.2"), (9.96, "10"), (999.6, "1.0k"), (f64::NAN, "?")] {
            assert_eq!(rate(x), text);
        }
        assert_eq!(
            (counted(1, "rank"), counted(2000, "rank")),
            ("1 rank".into(), "2,000 ranks".into())
        );
        let times = [
            (0.0, "0 s"),
            (0.0004, "0.4 ms"),
            (0.412, "412 ms"),
            (0.9996, "1.0 s"),
            (4.2, "4.2 s"),
        ];
        let longer = [(59.96, "1m00s"), (192.0, "3m12s"), (3599.6, "1h00m"), (3720.0, "1h02m")];
        let longest = [(86_399.0, "1d00h"), (273_600.0, "3d04h"), (f64::INFINITY, "?")];
        for (x, text) in times.into_iter().chain(longer).chain(longest) {
            assert_eq!(duration(x), text, "{x}");
        }
        for (x, text) in [(128.0, "128"), (0.3312, "0.331"), (65536.5, "65536.5"), (2e6, "2.00e6")]
        {
            assert_eq!(figure(x), text);
        }
    }

    #[test]
    fn time_left_follows_the_recent_pace() {
        let mut left = TimeLeft::new(3);
        assert_eq!(left.left(10), None);
        left.observe(1, 100.0);
        assert_eq!(left.left(2), Some(200.0));
        for _ in 0..3 {
            left.observe(2, 1.0);
        }
        assert_eq!(left.left(10), Some(5.0));
    }

    #[test]
    #[cfg(target_os = "linux")]
    fn resident_memory_covers_what_is_held() {
        let held = std::hint::black_box(vec![1u8; 64 << 20]);
        let resident = resident_bytes().unwrap();
        assert!((64 << 20..1 << 40).contains(&resident), "{resident} {}", held.len());
    }

    proptest! {
        #[test]
        fn helpers_never_panic_and_stay_short(n in any::<u64>(), x in any::<f64>()) {
            let texts = [count(n), bytes(n), rate(x.abs()), duration(x), figure(x)];
            for text in &texts[..2] {
                prop_assert!(text.len() <= 12, "{}", text);
            }
            prop_assert!(texts.iter().all(|text| !text.is_empty()));
        }
    }
}
