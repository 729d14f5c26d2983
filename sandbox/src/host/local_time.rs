//! Local time, localtime(3).

/// As in the C locale.
const MONTHS: [&str; 12] = [
    "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec",
];

/// A date and a time of the day.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LocalTime {
    /// Of the common era.
    pub year: i32,
    /// From 0 for January.
    pub month: usize,
    /// From 1 to 31.
    pub day: u8,
    /// From 0 to 23.
    pub hour: u8,
    /// From 0 to 59.
    pub minute: u8,
}

impl LocalTime {
    /// Converts nanoseconds since the epoch. None if they are out of range.
    #[expect(unsafe_code, reason = "localtime_r")]
    pub fn of(ns: u64) -> Option<Self> {
        let seconds = i64::try_from(ns / 1_000_000_000).ok()?;
        // SAFETY: all zeros are a struct tm; localtime_r fills it and keeps neither pointer.
        let time = unsafe {
            let mut time: libc::tm = std::mem::zeroed();
            if libc::localtime_r(&seconds, &mut time).is_null() {
                return None;
            }
            time
        };
        Some(Self {
            year: time.tm_year + 1900,
            month: usize::try_from(time.tm_mon).ok()?,
            day: u8::try_from(time.tm_mday).ok()?,
            hour: u8::try_from(time.tm_hour).ok()?,
            minute: u8::try_from(time.tm_min).ok()?,
        })
    }

    /// The month's English abbreviation, three letters.
    pub fn month_name(&self) -> &'static str {
        MONTHS.get(self.month).unwrap_or(&"?")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_a_date_in_every_zone() {
        // Noon in Greenwich: the same day in every zone but the Line Islands'.
        let time = LocalTime::of(1_700_049_600_000_000_000).unwrap();
        assert_eq!((time.year, time.month_name()), (2023, "Nov"));
        assert!((15..=16).contains(&time.day));
    }
}
