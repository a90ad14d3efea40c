//! Numbers of things in messages.

use std::fmt::Display;

/// So many of what `thing` names in the singular: `1 step`, `2 steps`.
pub(crate) fn counted(count: impl Display + TryInto<u64> + Copy, thing: &str) -> String {
    let is_one = count.try_into().is_ok_and(|count: u64| count == 1);
    format!("{count} {thing}{}", if is_one { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::counted;

    #[test]
    fn one_alone_is_in_the_singular() {
        assert_eq!([0, 1, 2].map(|count: usize| counted(count, "row")), ["0 rows", "1 row", "2 rows"]);
        assert_eq!(counted(1_u64, "training row"), "1 training row");
        assert_eq!(counted(u64::MAX, "step"), "18446744073709551615 steps");
    }
}
