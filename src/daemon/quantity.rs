//! Sizes and durations as people write them: `10GiB`, `10G`, `10GB`, `4096`, `100ms`, `5s`.
//!
//! Without the `i` and with a `B` a unit is decimal (`GB` is 10^9); the bare letter is binary, as in
//! LVM and ZFS (`G` is 2^30). Case makes no difference. What is shown reads back as the same value.

use std::time::Duration;

use crate::units::BINARY_UNITS;
use crate::units::ByteCount;

/// Reads a size such as `1.5TiB`, `10G`, `10GB` or `4096`.
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn parse_size(text: &str) -> Result<ByteCount, String> {
    let (number, unit) = split(text)?;
    let multiplier = size_unit(unit).ok_or_else(|| {
        format!("`{unit}` is no unit of size (use B, KiB, MiB, GiB, TiB or KB, MB, GB, TB)")
    })?;
    let bytes = scale(number, multiplier)
        .ok_or_else(|| format!("`{text}` is not a size (write it like 10GiB, 10GB or 4096)"))?;
    u64::try_from(bytes).map(ByteCount).map_err(|_| format!("`{text}` is more than 16 EiB"))
}

/// The shortest exact text for a size: `16GiB`, or plain bytes where no unit divides it.
#[must_use]
pub fn show_size(size: ByteCount) -> String {
    for (unit, shift) in BINARY_UNITS {
        if size.0 != 0 && size.0.trailing_zeros() >= shift {
            return format!("{}{unit}", size.0 >> shift);
        }
    }
    size.0.to_string()
}

/// A size for people: at most four digits, rounded (`9.77 GiB`). It does not read back exactly.
#[must_use]
pub fn round_size(size: ByteCount) -> String {
    size.rounded()
}

/// Reads a duration such as `100ms`, `5s`, `2min`, `1h` or `30d`.
///
/// # Errors
/// A sentence that says what is wrong with `text`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let (number, unit) = split(text)?;
    let nanoseconds: u64 = match unit {
        "us" | "\u{b5}s" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60_000_000_000,
        "h" => 3_600_000_000_000,
        "d" => 86_400_000_000_000,
        "" => return Err(format!("`{text}` has no unit of time (write it like 100ms or 5s)")),
        _ => return Err(format!("`{unit}` is no unit of time (use us, ms, s, min, h or d)")),
    };
    scale(number, nanoseconds)
        .and_then(|total| u64::try_from(total).ok())
        .map(Duration::from_nanos)
        .ok_or_else(|| format!("`{text}` is not a duration (write it like 100ms or 5s)"))
}

/// The shortest exact text for a duration, down to the microsecond.
#[must_use]
pub fn show_duration(duration: Duration) -> String {
    let microseconds = duration.as_micros();
    let units =
        [("d", 86_400_000_000), ("h", 3_600_000_000), ("min", 60_000_000), ("s", 1_000_000), ("ms", 1_000)];
    for (unit, length) in units {
        if microseconds >= length && microseconds.is_multiple_of(length) {
            return format!("{}{unit}", microseconds / length);
        }
    }
    format!("{microseconds}us")
}

/// Parts a text into its number and the unit behind it.
fn split(text: &str) -> Result<(&str, &str), String> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    if number.is_empty() {
        return Err(format!("`{text}` does not begin with a number"));
    }
    Ok((number, unit.trim_start()))
}

fn size_unit(unit: &str) -> Option<u64> {
    let lower = unit.to_ascii_lowercase();
    if matches!(lower.as_str(), "" | "b") {
        return Some(1);
    }
    let power = u32::try_from("kmgtpe".find(lower.chars().next()?)?).ok()? + 1;
    match lower.get(1..)? {
        "" | "ib" => Some(1 << (10 * power)),
        "b" => Some(1000u64.pow(power)),
        _ => None,
    }
}

/// `number` (digits, perhaps with one point) times `multiplier`, rounded down.
fn scale(number: &str, multiplier: u64) -> Option<u128> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty()
        || whole.len() > 20
        || fraction.len() > 15
        || (number.contains('.') && fraction.is_empty())
    {
        return None;
    }
    let whole: u128 = whole.parse().ok()?;
    let places = u32::try_from(fraction.len()).ok()?;
    let fraction: u128 = if fraction.is_empty() { 0 } else { fraction.parse().ok()? };
    let multiplier = u128::from(multiplier);
    Some(whole * multiplier + fraction * multiplier / 10u128.pow(places))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_read_as_lvm_and_zfs_users_mean_them() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("10GiB", 10 << 30),
            ("10G", 10 << 30),
            ("10g", 10 << 30),
            ("10GB", 10_000_000_000),
            ("1.5K", 1536),
            ("8 TiB", 8 << 40),
            ("512B", 512),
        ] {
            assert_eq!(parse_size(text), Ok(ByteCount(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in [
            "",
            "GiB",
            "10 apples",
            "1..5G",
            "1.5.2G",
            "1.",
            ".5G",
            "-1",
            "16EiB",
            "1e9",
            "99999999999999999999999",
        ] {
            assert!(parse_size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn shown_sizes_read_back() {
        for bytes in [0, 1, 4096, 4097, 33 << 20, (33 << 20) + 1, 16 << 30, 1 << 60, u64::MAX] {
            let text = show_size(ByteCount(bytes));
            assert_eq!(parse_size(&text), Ok(ByteCount(bytes)), "{text}");
        }
        assert_eq!(show_size(ByteCount(16 << 30)), "16GiB");
        assert_eq!(round_size(ByteCount(10_485_760_000)), "9.77 GiB");
    }

    #[test]
    fn durations_read_and_show() {
        for (text, milliseconds) in
            [("100ms", 100), ("5s", 5_000), ("0.5s", 500), ("2min", 120_000), ("1h", 3_600_000)]
        {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["100", "", "5 parsecs", "s"] {
            assert!(parse_duration(text).is_err(), "{text}");
        }
        assert_eq!(show_duration(Duration::from_millis(100)), "100ms");
        assert_eq!(show_duration(Duration::from_secs(90)), "90s");
        assert_eq!(show_duration(Duration::from_secs(120)), "2min");
    }
}
