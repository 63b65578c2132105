//! Formats dates as `strftime` does.
//!
//! In: a moment without a time zone. Out: text. The letters that chat templates use are known; others are left as they
//! are written.

use std::fmt::Write;

/// A moment as a chat template sees it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    year: i32,
    /// From 1.
    month: u8,
    /// From 1.
    day: u8,
    second_of_day: u32,
}

const MONTHS: [&str; 12] = [
    "January",
    "February",
    "March",
    "April",
    "May",
    "June",
    "July",
    "August",
    "September",
    "October",
    "November",
    "December",
];
const DAYS: [&str; 7] = ["Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday"];

impl Moment {
    /// The beginning of a day; `None` for a day that the calendar does not have, or a year outside 1 to 9999.
    pub fn day(year: i32, month: u8, day: u8) -> Option<Self> {
        let exists = (1..=9999).contains(&year) && (1..=12).contains(&month);
        let moment = Self { year, month, day, second_of_day: 0 };
        (exists && (1..=days_of(year, month)).contains(&day)).then_some(moment)
    }

    /// So many seconds after the beginning of 1970, in Greenwich.
    pub fn since_1970(seconds: u64) -> Self {
        let mut days = seconds / 86_400;
        let (mut year, mut month) = (1970, 1u8);
        // 146 097 days are 400 years; the loops after it take few turns.
        year += (days / 146_097 * 400).min(8000) as i32;
        days %= 146_097;
        while days >= u64::from(days_of_year(year)) {
            days -= u64::from(days_of_year(year));
            year += 1;
        }
        while days >= u64::from(days_of(year, month)) {
            days -= u64::from(days_of(year, month));
            month += 1;
        }
        Self { year, month, day: days as u8 + 1, second_of_day: (seconds % 86_400) as u32 }
    }

    /// Text with each `%` and letter replaced by a part of the moment.
    pub fn format(&self, format: &str) -> String {
        let mut text = String::new();
        let mut letters = format.chars();
        while let Some(letter) = letters.next() {
            if letter != '%' {
                text.push(letter);
                continue;
            }
            match letters.next() {
                Some('-') => {
                    let part = letters.next().map(|letter| self.part(letter)).unwrap_or_default();
                    let bare = part.trim_start_matches('0');
                    text.push_str(if bare.is_empty() && !part.is_empty() { "0" } else { bare });
                }
                Some(letter) => text.push_str(&self.part(letter)),
                None => text.push('%'),
            }
        }
        text
    }

    fn part(&self, letter: char) -> String {
        let Self { year, month, day, second_of_day } = *self;
        let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
        let month_name = MONTHS[usize::from(month) - 1];
        let day_name = DAYS[self.weekday()];
        match letter {
            'Y' => year.to_string(),
            'y' => format!("{:02}", year % 100),
            'm' => format!("{month:02}"),
            'd' => format!("{day:02}"),
            'e' => format!("{day:2}"),
            'B' => month_name.to_owned(),
            'b' | 'h' => month_name[..3].to_owned(),
            'A' => day_name.to_owned(),
            'a' => day_name[..3].to_owned(),
            'j' => format!("{:03}", self.day_of_year()),
            'w' => self.weekday().to_string(),
            'u' => (if self.weekday() == 0 { 7 } else { self.weekday() }).to_string(),
            'H' => format!("{hour:02}"),
            'I' => format!("{:02}", (hour + 11) % 12 + 1),
            'M' => format!("{minute:02}"),
            'S' => format!("{second:02}"),
            'f' => "000000".to_owned(),
            'p' => (if hour < 12 { "AM" } else { "PM" }).to_owned(),
            'F' => self.format("%Y-%m-%d"),
            'T' => self.format("%H:%M:%S"),
            'D' => self.format("%m/%d/%y"),
            'R' => self.format("%H:%M"),
            'c' => self.format("%a %b %e %H:%M:%S %Y"),
            'x' => self.format("%m/%d/%y"),
            'X' => self.format("%H:%M:%S"),
            'z' | 'Z' => String::new(),
            'n' => "\n".to_owned(),
            't' => "\t".to_owned(),
            '%' => "%".to_owned(),
            other => {
                let mut text = String::from("%");
                let _ = write!(text, "{other}"); // Writing to a string does not fail.
                text
            }
        }
    }

    fn day_of_year(&self) -> u32 {
        (1..self.month).map(|month| u32::from(days_of(self.year, month))).sum::<u32>() + u32::from(self.day)
    }

    /// From 0, a Sunday, by Sakamoto's method.
    fn weekday(&self) -> usize {
        const SHIFTS: [i32; 12] = [0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4];
        let year = if self.month < 3 { self.year - 1 } else { self.year };
        let shift = SHIFTS[usize::from(self.month) - 1];
        (year + year / 4 - year / 100 + year / 400 + shift + i32::from(self.day)).rem_euclid(7) as usize
    }
}

fn is_leap(year: i32) -> bool {
    (year % 4 == 0 && year % 100 != 0) || year % 400 == 0
}

fn days_of_year(year: i32) -> u16 {
    if is_leap(year) { 366 } else { 365 }
}

fn days_of(year: i32, month: u8) -> u8 {
    match month {
        2 => 28 + u8::from(is_leap(year)),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expected texts are those of Python's `datetime.strftime`.
    #[test]
    fn dates_are_written_as_python_writes_them() {
        let leap = Moment::since_1970(951_827_696); // 2000-02-29 12:34:56
        assert_eq!(
            leap.format("%Y-%m-%d %H:%M:%S %A %a %B %b %j %y %p %I"),
            "2000-02-29 12:34:56 Tuesday Tue February Feb 060 00 PM 12"
        );
        let day = Moment::day(2024, 7, 6).unwrap();
        assert_eq!(
            day.format("%d %b %Y|%-d/%-m|%e|%%|%c|%u%w"),
            "06 Jul 2024|6/7| 6|%|Sat Jul  6 00:00:00 2024|66"
        );
        assert_eq!(day.format("%I %p %-H %"), "12 AM 0 %");
        assert_eq!(Moment::since_1970(0).format("%A, %d %B %Y"), "Thursday, 01 January 1970");
        assert_eq!(Moment::since_1970(4_102_444_799).format("%F %T"), "2099-12-31 23:59:59");
    }

    #[test]
    fn days_that_do_not_exist_are_refused() {
        assert!(Moment::day(2023, 2, 29).is_none() && Moment::day(2024, 2, 29).is_some());
        assert!(Moment::day(2000, 2, 29).is_some() && Moment::day(1900, 2, 29).is_none());
        assert!(Moment::day(2024, 0, 1).is_none() && Moment::day(2024, 13, 1).is_none());
        assert!(Moment::day(2024, 4, 31).is_none() && Moment::day(0, 1, 1).is_none());
    }

    #[test]
    fn any_number_of_seconds_is_a_moment() {
        for seconds in [u64::MAX, u64::MAX / 2, 253_402_300_799, 1 << 40] {
            assert!(!Moment::since_1970(seconds).format("%c").is_empty());
        }
    }
}
