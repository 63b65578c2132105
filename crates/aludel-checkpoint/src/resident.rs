//! Asks the system how much memory this process has resident. Only Linux answers; elsewhere nobody knows.

/// Bytes resident now.
pub fn now() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes that were ever resident.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
