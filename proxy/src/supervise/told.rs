//! What was said last, so that the log tells of changes and not of every time.

/// Remembers a result, numbers apart: they change all the time and make no news.
#[derive(Default)]
pub(super) struct Told(Option<Result<String, String>>);

impl Told {
    /// Whether this is something else than last time.
    pub(super) fn is_news<T: AsRef<str>>(&mut self, result: &Result<T, String>) -> bool {
        let without_digits =
            |text: &str| text.chars().filter(|c| !c.is_ascii_digit()).collect::<String>();
        let said = match result {
            Ok(text) => Ok(without_digits(text.as_ref())),
            Err(reason) => Err(without_digits(reason)),
        };
        let news = self.0.as_ref() != Some(&said);
        self.0 = Some(said);
        news
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_make_no_news() {
        let mut told = Told::default();
        let mut is_news = |result: Result<&str, &str>| told.is_news(&result.map_err(str::to_owned));
        assert!(is_news(Err("17 lines")));
        assert!(!is_news(Err("18 lines")));
        assert!(is_news(Ok("18 lines")));
        assert!(!is_news(Ok("9 lines")));
        assert!(is_news(Err("18 lines")));
    }
}
