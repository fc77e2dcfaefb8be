//! How much memory is free.

use std::fs;

/// Bytes that can be had without anything being swapped out or stopped: what the system says is available, or less where a
/// control group allows less. Nothing where neither is told.
pub(super) fn free_bytes() -> Option<u64> {
    let available = fs::read_to_string("/proc/meminfo").ok().and_then(|text| available(&text));
    [available, allowed()].into_iter().flatten().min()
}

/// Of `/proc/meminfo`.
fn available(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

/// What the control group has left; its caches count as taken, so a program gets at least that much.
fn allowed() -> Option<u64> {
    let read = |name: &str| fs::read_to_string(format!("/sys/fs/cgroup/{name}")).ok()?.trim().parse::<u64>().ok();
    Some(read("memory.max")?.saturating_sub(read("memory.current")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_system_says() {
        let text = "MemTotal:       16384000 kB\nMemFree:          100 kB\nMemAvailable:   12000000 kB\n";
        assert_eq!(available(text), Some(12_000_000 * 1024));
        assert_eq!(available("MemTotal: 1 kB\n"), None);
        assert_eq!(available("MemAvailable: many kB\n"), None);
        if cfg!(target_os = "linux") {
            let free = free_bytes().unwrap();
            assert!((1 << 20..1 << 50).contains(&free), "{free}");
        }
    }
}
