//! The name that was meant.

/// The candidate that is most like `name`, where one is alike enough to be worth asking about.
pub fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// As clap has it for its options.
    const ALIKE: f64 = 0.7;
    let rated = candidates.into_iter().map(|candidate| (strsim::jaro(name, candidate), candidate));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(alike, _)| *alike > ALIKE).map(|(_, candidate)| candidate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_what_was_meant_and_nothing_else() {
        let names = ["handle", "function", "object"];
        assert_eq!(nearest("handel", names), Some("handle"));
        assert_eq!(nearest("Object", names), Some("object"));
        assert_eq!(nearest("xyz", names), None);
        assert_eq!(nearest("", names), None);
    }
}
