//! The current date, for templates that include it in the prompt: Python's `strftime` on Linux, in UTC and in English.

use std::time::{SystemTime, UNIX_EPOCH};

const DAYS: [&str; 7] = [
    "Sunday",
    "Monday",
    "Tuesday",
    "Wednesday",
    "Thursday",
    "Friday",
    "Saturday",
];
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
/// The widest field, as in `%10d`.
const MAX_WIDTH: usize = 100;

/// Formats a time. A code that Python does not know stays as it is.
pub(super) fn strftime(format: &str, now: SystemTime) -> String {
    let since = now.duration_since(UNIX_EPOCH).unwrap_or_default();
    let time = Time::new(since.as_secs(), since.subsec_micros());
    let mut text = String::new();
    time.write(format, &mut text);
    text
}

/// A time and its parts.
struct Time {
    seconds: u64,
    microsecond: u32,
    year: u64,
    month: u64,
    day: u64,
    /// Days since 1 January.
    year_day: u64,
    /// Days since Sunday.
    week_day: u64,
    hour: u64,
    minute: u64,
    second: u64,
}

/// What a code stands for.
enum Field {
    /// A number, with the width to which it is padded, and the padding.
    Number(u64, usize, char),
    /// A name, which a flag may put in upper or lower case.
    Name(&'static str),
    /// Other codes.
    Format(&'static str),
    /// Text as it is.
    Text(&'static str),
}

impl Time {
    fn new(seconds: u64, microsecond: u32) -> Time {
        let (days, second) = (seconds / 86_400, seconds % 86_400);
        let (year, month, day, year_day) = civil(days);
        Time {
            seconds,
            microsecond,
            year,
            month,
            day,
            year_day,
            // 1 January 1970 was a Thursday.
            week_day: (days + 4) % 7,
            hour: second / 3600,
            minute: second / 60 % 60,
            second: second % 60,
        }
    }

    fn write(&self, format: &str, text: &mut String) {
        let mut rest = format;
        while let Some(at) = rest.find('%') {
            text.push_str(&rest[..at]);
            rest = &rest[at..];
            let written = self.write_field(&rest[1..], text);
            if written == 0 {
                text.push('%');
            }
            rest = &rest[1 + written..];
        }
        text.push_str(rest);
    }

    /// Writes the field after a `%`, and returns the length of its flags, width and code; 0 if there is no such field.
    fn write_field(&self, format: &str, text: &mut String) -> usize {
        let flags = format.trim_start_matches(['-', '_', '0', '^', '#']);
        let flag = |wanted: char| format[..format.len() - flags.len()].contains(wanted);
        let unit = flags.trim_start_matches(|c: char| c.is_ascii_digit());
        let width = flags[..flags.len() - unit.len()].parse::<usize>();
        let width = width.unwrap_or(0).min(MAX_WIDTH);
        let unit = unit.strip_prefix(['E', 'O']).unwrap_or(unit);
        let Some(code) = unit.chars().next() else {
            return 0;
        };
        let Some(field) = self.field(code) else {
            return 0;
        };
        let (mut own, mut padding) = (String::new(), ' ');
        match field {
            Field::Number(number, digits, usual) => {
                padding = if flag('_') { ' ' } else { usual };
                let digits = if flag('-') { 0 } else { digits.max(width) };
                let number = number.to_string();
                let missing = digits.saturating_sub(number.len());
                own.extend(std::iter::repeat_n(padding, missing));
                own.push_str(&number);
            }
            Field::Name(name) if flag('#') && code == 'p' => own = name.to_lowercase(),
            Field::Name(name) if flag('^') || flag('#') => own = name.to_uppercase(),
            Field::Name(name) => own.push_str(name),
            Field::Format(format) => self.write(format, &mut own),
            Field::Text(plain) => own.push_str(plain),
        }
        let missing = width.saturating_sub(own.len());
        text.extend(std::iter::repeat_n(padding, missing));
        text.push_str(&own);
        format.len() - unit.len() + code.len_utf8()
    }

    fn field(&self, code: char) -> Option<Field> {
        let padded = |number, digits| Field::Number(number, digits, '0');
        let spaced = |number| Field::Number(number, 2, ' ');
        let hour = (self.hour + 11) % 12 + 1;
        let day = DAYS[self.week_day as usize];
        let month = MONTHS[self.month as usize - 1];
        // Monday is the first day of the week.
        let from_monday = (self.week_day + 6) % 7;
        let (iso_year, iso_week) = self.iso_week();
        Some(match code {
            'Y' => padded(self.year, 1),
            'C' => padded(self.year / 100, 2),
            'y' => padded(self.year % 100, 2),
            'G' => padded(iso_year, 1),
            'g' => padded(iso_year % 100, 2),
            'm' => padded(self.month, 2),
            'd' => padded(self.day, 2),
            'e' => spaced(self.day),
            'j' => padded(self.year_day + 1, 3),
            'U' => padded((self.year_day + 7 - self.week_day) / 7, 2),
            'W' => padded((self.year_day + 7 - from_monday) / 7, 2),
            'V' => padded(iso_week, 2),
            'u' => padded(from_monday + 1, 1),
            'w' => padded(self.week_day, 1),
            'H' => padded(self.hour, 2),
            'k' => spaced(self.hour),
            'I' => padded(hour, 2),
            'l' => spaced(hour),
            'M' => padded(self.minute, 2),
            'S' => padded(self.second, 2),
            'f' => padded(self.microsecond.into(), 6),
            's' => padded(self.seconds, 1),
            'B' => Field::Name(month),
            'b' | 'h' => Field::Name(&month[..3]),
            'A' => Field::Name(day),
            'a' => Field::Name(&day[..3]),
            'p' => Field::Name(if self.hour < 12 { "AM" } else { "PM" }),
            'P' => Field::Text(if self.hour < 12 { "am" } else { "pm" }),
            'c' => Field::Format("%a %b %e %H:%M:%S %Y"),
            'x' | 'D' => Field::Format("%m/%d/%y"),
            'X' | 'T' => Field::Format("%H:%M:%S"),
            'F' => Field::Format("%Y-%m-%d"),
            'R' => Field::Format("%H:%M"),
            'r' => Field::Format("%I:%M:%S %p"),
            // The time that transformers formats has no zone.
            'z' | 'Z' => Field::Text(""),
            'n' => Field::Text("\n"),
            't' => Field::Text("\t"),
            '%' => Field::Text("%"),
            _ => return None,
        })
    }

    /// The year and the week of ISO 8601: a week belongs to the year of its Thursday.
    fn iso_week(&self) -> (u64, u64) {
        let days = self.seconds / 86_400;
        // The first days of 1970 are in its first week, so the Thursday is not before 1970.
        let thursday = days + 3 - (self.week_day + 6) % 7;
        let (year, _, _, year_day) = civil(thursday);
        (year, year_day / 7 + 1)
    }
}

/// Year, month, day and days since 1 January of a number of days since 1970-01-01.
fn civil(days: u64) -> (u64, u64, u64, u64) {
    let leap = |year: u64| {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    };
    let (mut year, mut rest) = (1970 + days / 146_097 * 400, days % 146_097);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let year_day = rest;
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1, year_day)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn dates_are_formatted_as_in_python() {
        let fixture = include_str!("../../tests/fixtures/templates.json");
        let fixture: serde_json::Value = serde_json::from_str(fixture).unwrap();
        let dates = fixture["dates"].as_array().unwrap();
        assert!(dates.len() > 200);
        for date in dates {
            let at = UNIX_EPOCH + Duration::from_secs(date["seconds"].as_u64().unwrap());
            let format = date["format"].as_str().unwrap();
            let text = strftime(format, at);
            assert_eq!(text, date["text"], "{format} at {}", date["seconds"]);
        }
    }

    #[test]
    fn century_without_a_leap_day_is_known() {
        let at = UNIX_EPOCH + Duration::from_secs(4_107_542_399);
        assert_eq!(strftime("%a %y-%m-%d", at), "Sun 00-02-28");
        assert_eq!(strftime("%9999d|%5y|%-", at).len(), 100 + 1 + 5 + 1 + 2);
    }
}
