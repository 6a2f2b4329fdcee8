//! Numbers formatted for messages.

pub use vbk_repo::text::size;

/// Returns a speed: `120 MB/s`, in units of 1000, as disks are sold. Three digits at least, so that a limit can be read
/// back.
pub fn rate(bytes_per_sec: u64) -> String {
    let (unit, factor) = match bytes_per_sec {
        0..1_000 => ("B/s", 1.0),
        1_000..1_000_000 => ("kB/s", 1e3),
        1_000_000..10_000_000_000 => ("MB/s", 1e6),
        _ => ("GB/s", 1e9),
    };
    let value = bytes_per_sec as f64 / factor;
    let text = if value < 99.95 {
        format!("{value:.1}")
    } else {
        format!("{value:.0}")
    };
    format!("{} {unit}", text.strip_suffix(".0").unwrap_or(&text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_short() {
        for (speed, text) in [
            (999, "999 B/s"),
            (5_000_000, "5 MB/s"),
            (5_250_000, "5.2 MB/s"),
            (120_000_000, "120 MB/s"),
            (12_000_000_000, "12 GB/s"),
        ] {
            assert_eq!(rate(speed), text);
        }
    }
}
