//! Natural order of names: `clip2` before `clip10`.

use std::cmp::Ordering;

/// Compares two names with their runs of digits taken as numbers; names that differ only in leading zeros fall back to
/// plain order, so that the order is total.
pub(crate) fn natural_order(a: &str, b: &str) -> Ordering {
    let (mut left, mut right) = (a.as_bytes(), b.as_bytes());
    loop {
        match (left.first(), right.first()) {
            (None, None) => return a.cmp(b),
            (None, _) => return Ordering::Less,
            (_, None) => return Ordering::Greater,
            (Some(x), Some(y)) if x.is_ascii_digit() && y.is_ascii_digit() => {
                let (x, y) = (take_number(&mut left), take_number(&mut right));
                let order = x.len().cmp(&y.len()).then_with(|| x.cmp(y));
                if order != Ordering::Equal {
                    return order;
                }
            }
            (Some(x), Some(y)) if x != y => return x.cmp(y),
            _ => (left, right) = (&left[1..], &right[1..]),
        }
    }
}

/// Takes the digits at the front of `text`; returns them without leading zeros.
fn take_number<'a>(text: &mut &'a [u8]) -> &'a [u8] {
    let end = text.iter().position(|c| !c.is_ascii_digit()).unwrap_or(text.len());
    let (digits, rest) = text.split_at(end);
    *text = rest;
    let zeros = digits.iter().take_while(|&&c| c == b'0').count();
    &digits[zeros..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_count_as_numbers() {
        let mut names =
            ["clip10", "clip2", "Clip1", "clip02b", "clip002", "clip", "clip99999999999999999999999", "10", "9"];
        names.sort_by(|a, b| natural_order(a, b));
        let expected =
            ["9", "10", "Clip1", "clip", "clip002", "clip2", "clip02b", "clip10", "clip99999999999999999999999"];
        assert_eq!(names, expected);
    }
}
