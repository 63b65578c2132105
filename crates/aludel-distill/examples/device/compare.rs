//! Says how far values are from what they should be, and remembers whether all are near enough.

use std::error::Error;

/// The largest difference that is near enough, relative and norm-wise.
pub(crate) const TOLERANCE: f64 = 1e-2;

/// What has been compared.
pub(crate) struct Findings {
    compared: usize,
    wrong: Vec<String>,
    /// Comparisons met so far, and the process that does each, by turns: its own place, and how many there are.
    met: usize,
    part: [usize; 2],
    begins: String,
}

impl Findings {
    /// Of one of several processes that share out the comparisons.
    pub(crate) fn of_part(part: [usize; 2]) -> Self {
        Self { compared: 0, wrong: Vec::new(), met: 0, part, begins: String::new() }
    }

    /// Those alone whose name begins so.
    pub(crate) fn of(self, begins: &str) -> Self {
        Self { begins: begins.to_owned(), ..self }
    }

    /// Whether the next comparison, of this name, is this process's.
    pub(crate) fn is_own(&mut self, name: &str) -> bool {
        let [own, parts] = self.part;
        let is_wanted = name.starts_with(&self.begins);
        self.met += usize::from(is_wanted);
        // Five at a time: some sorts come by turns, in twos and fours.
        is_wanted && self.met / 5 % parts.max(1) == own
    }

    /// Compares values, and prints how far they are apart.
    pub(crate) fn add(&mut self, name: &str, got: &[f32], want: &[f32], tolerance: f64) {
        self.compared += 1;
        let error = if got.len() == want.len() { distance(got, want) } else { f64::NAN };
        let is_near = error <= tolerance;
        if !is_near {
            self.wrong.push(format!("{name}: {error:.2e}"));
        }
        println!("{} {error:.2e} {name}", if is_near { "ok   " } else { "WRONG" });
    }

    /// Fails where something was wrong.
    pub(crate) fn finish(self) -> Result<(), Box<dyn Error>> {
        if self.compared > 0 {
            println!("{} compared, {} wrong", self.compared, self.wrong.len());
        }
        if self.wrong.is_empty() { Ok(()) } else { Err(self.wrong.join("; ").into()) }
    }
}

/// `|got - want| / |want|`; the norm of the difference where `want` is zero.
pub(crate) fn distance(got: &[f32], want: &[f32]) -> f64 {
    let (mut difference, mut norm) = (0.0, 0.0);
    for (&got, &want) in got.iter().zip(want) {
        difference += (f64::from(got) - f64::from(want)).powi(2);
        norm += f64::from(want).powi(2);
    }
    if norm == 0.0 { difference.sqrt() } else { (difference / norm).sqrt() }
}
