//! What rank 0 says on standard error: lines, and on a terminal one bar that redraws in place.
//!
//! A line never meets a half-drawn bar: it erases the bar, is written, and the bar is drawn again
//! below it. In a file there is no bar, only lines. Nobody is left to tell when standard error
//! itself fails, so such failures are ignored.

use super::step_line::percent;
use std::io::{self, IsTerminal, Write};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How much is said.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing: for every rank but 0.
    Silent,
    /// Warnings alone (`-q`).
    Quiet,
    /// What a run does.
    Normal,
    /// Details too (`-v`).
    Verbose,
}

/// Least time between two bars on a terminal, and between two progress lines in a file.
const REDRAW: Duration = Duration::from_millis(100);
const REPEAT: Duration = Duration::from_secs(10);

/// Erases the line the cursor stands on.
const ERASE: &str = "\r\x1b[K";

/// Narrowest and widest bar, in characters between its brackets.
const BAR: std::ops::RangeInclusive<usize> = 10..=40;

/// Where rank 0 speaks. Shared by reference; every thread may write.
pub struct Console {
    level: Level,
    terminal: bool,
    width: usize,
    state: Mutex<State>,
}

struct State {
    out: Box<dyn Write + Send>,
    /// The bar that stands, or would stand, on the last line.
    bar: Option<String>,
    /// When progress was last shown, or began.
    shown: Option<Instant>,
    /// Whether a file was told of the work that goes on.
    told: bool,
    /// Whether someone wrote part of a line and the bar has to wait.
    inside_line: bool,
}

impl Console {
    /// Standard error, at this level on rank 0 and silent on all others. The bar is as wide as
    /// `COLUMNS` or the terminal says, else 80.
    pub fn stderr(level: Level, rank: usize) -> Self {
        let level = if rank == 0 { level } else { Level::Silent };
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        let columns = std::env::var("COLUMNS").ok().and_then(|text| text.parse().ok());
        let terminal = io::stderr().is_terminal() && !dumb;
        let columns = columns.or_else(|| {
            let size = rustix::termios::tcgetwinsize(io::stderr()).ok()?;
            (size.ws_col > 0).then(|| usize::from(size.ws_col))
        });
        Self::to(Box::new(io::stderr()), level, terminal, columns.unwrap_or(80))
    }

    /// Any other place.
    pub fn to(out: Box<dyn Write + Send>, level: Level, terminal: bool, width: usize) -> Self {
        let state = State { out, bar: None, shown: None, told: false, inside_line: false };
        Console { level, terminal, width, state: Mutex::new(state) }
    }

    /// How much is said here.
    pub fn level(&self) -> Level {
        self.level
    }

    /// Says what a run does; `text` may have several lines.
    pub fn line(&self, text: &str) {
        self.say(Level::Normal, text);
    }

    /// Warns; heard at every level but silence.
    pub fn warn(&self, text: &str) {
        self.say(Level::Quiet, &format!("warning: {text}"));
    }

    /// Shows how far some work is: redraws the bar at most ten times a second, and takes it away at
    /// the end of the work; or writes a line to a file every ten seconds. A file hears nothing of
    /// work that takes less, and of the end of work only when it heard of the work.
    pub fn progress(&self, done: u64, total: u64, text: &str) {
        let pause = if self.terminal { REDRAW } else { REPEAT };
        self.show(done, total, text, pause);
        if self.terminal && done >= total {
            let mut state = self.state();
            if state.bar.take().is_some() {
                state.put(ERASE);
            }
        }
    }

    /// Like [`Console::progress`], but a file gets every one: for step lines, whose pace the user
    /// sets (`training.logging_steps`).
    pub fn step(&self, done: u64, total: u64, text: &str) {
        self.show(done, total, text, if self.terminal { REDRAW } else { Duration::ZERO });
    }

    /// Leaves the bar as it stands, and goes to a new line.
    pub fn finish(&self) {
        let mut state = self.state();
        state.shown = None;
        state.told = false;
        if let Some(bar) = state.bar.take() {
            state.put(&format!("{ERASE}{bar}\n"));
        }
    }

    fn say(&self, level: Level, text: &str) {
        if level <= self.level {
            self.state().put_line(text);
        }
    }

    fn show(&self, done: u64, total: u64, text: &str, pause: Duration) {
        if self.level < Level::Normal {
            return;
        }
        let mut state = self.state();
        let over = done >= total;
        let waited = state.shown.map(|shown| shown.elapsed() >= pause);
        let due = match self.terminal || pause.is_zero() {
            true => over || waited != Some(false),
            false => waited == Some(true) || over && state.told,
        };
        if self.terminal {
            // Kept even when not drawn, so that finish() leaves the last state.
            let bar = draw(done, total, text, self.width);
            if due && !state.inside_line {
                state.put(&format!("{ERASE}{bar}"));
            }
            state.bar = Some(bar);
        } else if due {
            state.put_line(text);
            state.told = !over && !pause.is_zero();
        }
        if due || waited.is_none() {
            state.shown = Some(Instant::now());
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn put(&mut self, text: &str) {
        self.put_bytes(text.as_bytes());
    }

    fn put_bytes(&mut self, bytes: &[u8]) {
        let _ = self.out.write_all(bytes).and_then(|()| self.out.flush());
    }

    fn put_line(&mut self, text: &str) {
        let text = match &self.bar {
            Some(bar) => format!("{ERASE}{text}\n{bar}"),
            None => format!("{text}\n"),
        };
        self.put(&text);
    }
}

/// For writers of whole lines that know nothing of a bar, such as a log subscriber.
impl Write for &Console {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.state();
        if !state.inside_line && state.bar.is_some() {
            state.put(ERASE);
        }
        state.put_bytes(bytes);
        state.inside_line = !bytes.ends_with(b"\n");
        if !state.inside_line
            && let Some(bar) = state.bar.clone()
        {
            state.put(&bar);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        self.finish();
    }
}

/// `[####------]  42% text`, one character narrower than the terminal, so that it never wraps.
fn draw(done: u64, total: u64, text: &str, width: usize) -> String {
    let share = if total == 0 { 1.0 } else { (done as f64 / total as f64).min(1.0) };
    let text: String = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Brackets, two spaces and four characters of percentage stand beside bar and text.
    let room = width.saturating_sub(1 + 8);
    let size = room.saturating_sub(text.chars().count()).clamp(*BAR.start(), *BAR.end());
    let full = (share * size as f64) as usize;
    let bar = format!("[{}{}]", "#".repeat(full), "-".repeat(size - full));
    let text = fit(&text, room.saturating_sub(size));
    let all = format!("{bar} {:>4} {text}", percent(share, 1.0));
    all.trim_end().chars().take(width.saturating_sub(1)).collect()
}

/// As many whole ` | ` fields as there is room for; at least the beginning of the first.
fn fit(text: &str, room: usize) -> String {
    let whole: Vec<&str> = text.split(" | ").collect();
    let fits = |n: &usize| whole[..*n].join(" | ").chars().count() <= room;
    match (1..=whole.len()).rev().find(fits) {
        Some(n) => whole[..n].join(" | "),
        None => text.chars().take(room).collect(),
    }
}

/// A plain table: columns two spaces apart, numbers to the right, no space at the ends of lines
/// and no newline after the last. A row that is too short is filled with nothing.
pub fn table(headers: &[&str], rows: &[Vec<String>]) -> String {
    fn cell(row: &[String], column: usize) -> &str {
        row.get(column).map_or("", String::as_str)
    }
    let length = |text: &str| text.chars().count();
    let numeric = |text: &str| {
        let digits = text.trim_start_matches(['-', '+', '<', '~']);
        text == "-" || digits.starts_with(|c: char| c.is_ascii_digit())
    };
    let columns: Vec<(usize, bool)> = (0..headers.len())
        .map(|column| {
            let cells = || rows.iter().map(|row| cell(row, column));
            let widest = cells().map(length).max().unwrap_or(0).max(length(headers[column]));
            (widest, !rows.is_empty() && cells().all(|text| text.is_empty() || numeric(text)))
        })
        .collect();
    let line = |texts: Vec<&str>| {
        let padded = texts.iter().zip(&columns).map(|(text, (width, right))| match right {
            true => format!("{text:>width$}"),
            false => format!("{text:<width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_string()
    };
    let body = rows.iter().map(|row| (0..headers.len()).map(|c| cell(row, c)).collect());
    std::iter::once(headers.to_vec()).chain(body).map(line).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Arc;

    /// A place to write that a test can look at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    impl Shared {
        fn text(&self) -> String {
            String::from_utf8(self.0.lock().unwrap().clone()).unwrap()
        }

        /// What a terminal would show: the lines above, and the one the cursor stands on.
        fn screen(&self) -> Vec<String> {
            let mut lines = vec![String::new()];
            for part in self.text().split_inclusive('\n') {
                let shown = part.rsplit(ERASE).next().unwrap();
                let erased = part.contains(ERASE);
                let last = lines.last_mut().unwrap();
                if erased {
                    last.clear();
                }
                last.push_str(shown.trim_end_matches('\n'));
                if part.ends_with('\n') {
                    lines.push(String::new());
                }
            }
            lines
        }
    }

    fn console(level: Level, terminal: bool) -> (Console, Shared) {
        let shared = Shared::default();
        (Console::to(Box::new(shared.clone()), level, terminal, 40), shared)
    }

    #[test]
    fn a_line_never_meets_a_bar() {
        let (console, shared) = console(Level::Normal, true);
        console.progress(1, 4, "one");
        console.line("hello\nworld");
        write!(&console, "from the ").unwrap();
        console.step(4, 4, "four");
        writeln!(&console, "log").unwrap();
        let bar = "[###########################] 100% four";
        assert_eq!(shared.screen(), ["hello", "world", "from the log", bar]);
        console.finish();
        console.line("done");
        assert_eq!(shared.screen(), ["hello", "world", "from the log", bar, "done", ""]);
        console.progress(1, 2, "half");
        console.progress(2, 2, "whole");
        console.line("over");
        assert_eq!(shared.screen()[4..], ["done", "over", ""]);
    }

    #[test]
    fn a_bar_is_not_redrawn_too_often_but_the_last_state_stays() {
        let (console, shared) = console(Level::Normal, true);
        for done in 0..1000 {
            console.step(done, 1000, &format!("step {done}"));
        }
        assert!(shared.text().matches(ERASE).count() < 500);
        drop(console);
        let screen = shared.screen();
        assert!(screen[0].ends_with(" step 999"), "{screen:?}");
        assert_eq!(screen.len(), 2);
    }

    #[test]
    fn a_file_gets_plain_lines_and_hears_nothing_of_short_work() {
        let (console, shared) = console(Level::Normal, false);
        for done in 1..=3 {
            console.step(done, 9, &format!("step {done}"));
        }
        for done in 4..=9 {
            console.progress(done, 9, &format!("item {done}"));
        }
        console.finish();
        assert_eq!(shared.text(), "step 1\nstep 2\nstep 3\n");
        let past = Instant::now().checked_sub(REPEAT);
        for done in [0, 5, 9] {
            if done == 5 {
                console.state().shown = past;
            }
            console.progress(done, 9, &format!("part {done}"));
        }
        assert!(shared.text().ends_with("step 3\npart 5\npart 9\n"), "{}", shared.text());
    }

    #[test]
    fn levels() {
        let said = |level| {
            let (console, shared) = console(level, false);
            console.warn("w");
            console.line("l");
            console.step(1, 1, "s");
            drop(console);
            shared.text()
        };
        assert_eq!(said(Level::Silent), "");
        assert_eq!(said(Level::Quiet), "warning: w\n");
        assert_eq!(said(Level::Normal), "warning: w\nl\ns\n");
        assert_eq!(said(Level::Verbose), "warning: w\nl\ns\n");
        assert_eq!(Console::stderr(Level::Verbose, 1).level(), Level::Silent);
    }

    #[test]
    fn a_long_line_keeps_whole_fields() {
        assert_eq!(fit("step 1/9 | loss 2.3 | lr 1e-4", 22), "step 1/9 | loss 2.3");
        assert_eq!(fit("step 1/9 | loss 2.3", 4), "step");
    }

    #[test]
    fn a_table() {
        let rows = [["weights", "12.0 GB"], ["a", "-"]].map(|r| r.map(String::from).to_vec());
        let text = table(&["what", "bytes"], &rows);
        assert_eq!(text, "what       bytes\nweights  12.0 GB\na              -");
        assert_eq!(table(&["a", "b"], &[vec!["x".into()]]), "a  b\nx");
    }

    proptest! {
        #[test]
        fn a_bar_always_fits(done in 0u64..2000, total in 0u64..1000, text in "\\PC{0,80}",
                             width in 0usize..200) {
            let bar = draw(done, total, &text, width);
            prop_assert!(bar.chars().count() < width.max(1));
        }
    }
}
