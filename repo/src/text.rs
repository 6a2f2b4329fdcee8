//! Numbers formatted for messages.

/// Formats a size: `1.2 GiB`. Three digits at most, or whole bytes.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64 / 1024.0;
    let mut units = UNITS.iter();
    let mut unit = units.next().unwrap_or(&"KiB");
    // 999.5 would be written as 1000.
    while value >= 999.5 {
        let Some(next) = units.next() else {
            break;
        };
        value /= 1024.0;
        unit = next;
    }
    // 9.95 would be written as 10.0.
    if value < 9.95 && value.fract() != 0.0 {
        let text = format!("{value:.1}");
        let text = text.strip_suffix(".0").unwrap_or(&text);
        format!("{text} {unit}")
    } else {
        format!("{value:.0} {unit}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_short() {
        let cases = [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (1 << 20, "1 MiB"),
            (1023 << 10, "1 MiB"),
            (412 << 20, "412 MiB"),
            (200 << 30, "200 GiB"),
            (1_288_490_189, "1.2 GiB"),
            (10_699_999_999, "10 GiB"),
            (u64::MAX, "16 EiB"),
        ];
        for (bytes, text) in cases {
            assert_eq!(size(bytes), text, "{bytes}");
        }
    }
}
