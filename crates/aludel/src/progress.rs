//! Shows how far the work is: a bar with rate and time left on a terminal, a line every ten seconds elsewhere.
//!
//! In: what is done and what is to do, as often as it comes: bytes, or anything whose figures come with it. It shows what it
//! is told and measures nothing but the time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use aludel_merge::execute;
use aludel_merge::plan::Bytes;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::printer::Printer;
use crate::settings::{Display, Verbosity};

/// Between two lines where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// The bar's parts; the figures are those of [`figures`], as in lines.
const MEASURED: &str = "{prefix} {bar:24} {msg}";
const WAITING: &str = "{prefix} {spinner} {elapsed}";

/// What is being done, and how far it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Stage {
    label: &'static str,
    done: u64,
    /// 0 when it is not known.
    total: u64,
    /// What is shown of it; those of bytes where there are none.
    figures: Option<String>,
}

impl Stage {
    /// So many of so many bytes of something.
    pub(crate) const fn bytes(label: &'static str, done: u64, total: u64) -> Self {
        Self { label, done, total, figures: None }
    }

    /// So much of so much of something else, and what is shown of it.
    pub(crate) const fn measured(label: &'static str, done: u64, total: u64, figures: String) -> Self {
        Self { label, done, total, figures: Some(figures) }
    }

    /// Something without a measure.
    pub(crate) const fn waiting(label: &'static str) -> Self {
        Self { label, done: 0, total: 0, figures: None }
    }

    /// The stage that a merge is in: its weights, then what is left of the hashes, then the disk.
    pub(crate) const fn of_merge(progress: execute::Progress) -> Self {
        if progress.bytes_read < progress.bytes_to_read {
            Self::bytes("merging", progress.bytes_read, progress.bytes_to_read)
        } else if progress.bytes_hashed < progress.bytes_to_hash {
            Self::bytes("hashing inputs", progress.bytes_hashed, progress.bytes_to_hash)
        } else {
            Self::waiting("syncing")
        }
    }
}

/// A display of progress; taken down when dropped.
pub(crate) struct Progress<'p> {
    printer: &'p Printer,
    shown: Mutex<Shown>,
}

/// What is on display.
struct Shown {
    stage: &'static str,
    since: Instant,
    last_line: Instant,
    bar: Option<ProgressBar>,
}

impl<'p> Progress<'p> {
    /// Nothing is shown until the first stage is.
    pub(crate) fn new(printer: &'p Printer) -> Self {
        let now = Instant::now();
        Self { printer, shown: Mutex::new(Shown { stage: "", since: now, last_line: now, bar: None }) }
    }

    /// Shows where the work stands.
    pub(crate) fn show(&self, stage: Stage) {
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let is_new = shown.stage != stage.label;
        if is_new {
            (shown.stage, shown.since) = (stage.label, Instant::now());
        }
        match self.printer.talk().progress {
            Display::Hidden => {}
            Display::Lines => self.show_line(&mut shown, &stage),
            Display::Bar => show_bar(&mut shown, &stage, is_new),
        }
    }

    /// Takes the display down, so that something else can be said.
    pub(crate) fn clear(&self) {
        if let Some(bar) = self.shown.lock().unwrap_or_else(PoisonError::into_inner).bar.take() {
            bar.finish_and_clear();
        }
    }

    fn show_line(&self, shown: &mut Shown, stage: &Stage) {
        if shown.last_line.elapsed() >= LINE_EVERY {
            shown.last_line = Instant::now();
            self.printer.say(Verbosity::Normal, &line(stage, shown.since.elapsed()));
        }
    }
}

impl Drop for Progress<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

fn show_bar(shown: &mut Shown, stage: &Stage, is_new: bool) {
    if is_new && let Some(bar) = shown.bar.take() {
        bar.finish_and_clear();
    }
    let bar = shown.bar.get_or_insert_with(|| new_bar(stage));
    bar.set_message(figures(stage, shown.since.elapsed()));
    bar.set_position(stage.done);
}

fn new_bar(stage: &Stage) -> ProgressBar {
    let template = if stage.total > 0 { MEASURED } else { WAITING };
    // The templates are constants that a test parses; indicatif's own style stands in for one that it refuses.
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    let bar = ProgressBar::hidden().with_style(style).with_prefix(stage.label);
    if stage.total > 0 {
        bar.set_length(stage.total);
    }
    bar.set_draw_target(ProgressDrawTarget::stderr());
    bar.enable_steady_tick(Duration::from_millis(100));
    bar
}

/// `merging: 42 %, 2.77 GB of 6.60 GB, 1.20 GB/s, 3.2 s left`.
fn line(stage: &Stage, elapsed: Duration) -> String {
    match stage.total {
        0 => stage.label.to_owned(),
        total => {
            let percent = stage.done as f64 / total as f64 * 100.0;
            format!("{}: {percent:.0} %, {}", stage.label, figures(stage, elapsed))
        }
    }
}

/// `2.77 GB of 6.60 GB, 1.20 GB/s, 3.2 s left`, by the stage's average rate.
fn figures(stage: &Stage, elapsed: Duration) -> String {
    if let Some(figures) = &stage.figures {
        return figures.clone();
    }
    let rate = stage.done as f64 / elapsed.as_secs_f64().max(1e-3);
    let left = stage.total.saturating_sub(stage.done) as f64 / rate;
    let left = if left.is_finite() { duration(left) } else { "? s".to_owned() };
    format!("{} of {}, {}/s, {left} left", Bytes(stage.done), Bytes(stage.total), Bytes(rate as u64))
}

/// `38 ms`, `4.1 s`, `3 min 20 s`, `2 h 5 min`.
pub(crate) fn duration(seconds: f64) -> String {
    let whole = seconds.round() as u64;
    match seconds {
        ..0.9995 => format!("{:.0} ms", seconds * 1e3),
        ..59.95 => format!("{seconds:.1} s"),
        _ if whole < 3600 => format!("{} min {} s", whole / 60, whole % 60),
        _ => format!("{} h {} min", whole / 3600, whole % 3600 / 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_merge_reads_then_hashes_then_syncs() {
        let progress = |bytes_read, bytes_hashed| {
            Stage::of_merge(execute::Progress {
                bytes_read,
                bytes_to_read: 100,
                bytes_hashed,
                bytes_to_hash: 50,
            })
        };
        assert_eq!(progress(99, 50), Stage::bytes("merging", 99, 100));
        assert_eq!(progress(100, 49), Stage::bytes("hashing inputs", 49, 50));
        assert_eq!(progress(100, 50), Stage::waiting("syncing"));
    }

    #[test]
    fn a_line_has_share_bytes_rate_and_time_left() {
        let text = line(&Stage::bytes("merging", 2_000_000_000, 8_000_000_000), Duration::from_secs(2));
        assert_eq!(text, "merging: 25 %, 2.00 GB of 8.00 GB, 1.00 GB/s, 6.0 s left");
        assert_eq!(line(&Stage::waiting("syncing"), Duration::ZERO), "syncing");
        let at_once = line(&Stage::bytes("merging", 0, 10), Duration::ZERO);
        assert_eq!(at_once, "merging: 0 %, 0 B of 10 B, 0 B/s, ? s left");
        let other = line(&Stage::measured("training", 3, 12, "step 3 of 12".into()), Duration::ZERO);
        assert_eq!(other, "training: 25 %, step 3 of 12");
    }

    #[test]
    fn durations_have_two_units_at_most() {
        for (seconds, text) in [
            (0.0, "0 ms"),
            (0.0384, "38 ms"),
            (0.9996, "1.0 s"),
            (59.94, "59.9 s"),
            (59.96, "1 min 0 s"),
            (200.4, "3 min 20 s"),
            (3_599.6, "1 h 0 min"),
            (7_501.0, "2 h 5 min"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }

    #[test]
    fn the_templates_are_well_formed() {
        for template in [MEASURED, WAITING] {
            assert!(ProgressStyle::with_template(template).is_ok(), "{template}");
        }
    }
}
