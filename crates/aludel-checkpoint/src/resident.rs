//! Asks the system how much memory this process has resident, and how much there is to have. Only Linux answers; elsewhere nobody knows.

/// Bytes resident now.
pub fn now() -> Option<u64> {
    status("VmRSS:")
}

/// The most bytes that were ever resident.
pub fn peak() -> Option<u64> {
    status("VmHWM:")
}

/// Bytes that the system could give to programs without swapping, those of cached files among them.
pub fn available() -> Option<u64> {
    value("/proc/meminfo", "MemAvailable:")
}

fn status(key: &str) -> Option<u64> {
    value("/proc/self/status", key)
}

fn value(file: &str, key: &str) -> Option<u64> {
    let text = std::fs::read_to_string(file).ok()?;
    let value = text.lines().find_map(|line| line.strip_prefix(key))?;
    value.trim().trim_end_matches("kB").trim().parse::<u64>().ok().map(|kibibytes| kibibytes * 1024)
}
