//! The name that was meant.

/// The candidate that is most like `name`, if one is alike enough to be worth asking about.
pub(crate) fn nearest<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    /// As clap has it for its options.
    const ALIKE: f64 = 0.7;
    let rated = candidates.into_iter().map(|candidate| (strsim::jaro(name, candidate), candidate));
    let best = rated.max_by(|a, b| a.0.total_cmp(&b.0));
    best.filter(|(alike, _)| *alike > ALIKE).map(|(_, candidate)| candidate)
}

/// The candidates, those first that are most like `name`.
pub(crate) fn by_likeness<'a>(name: &str, candidates: impl IntoIterator<Item = &'a str>) -> Vec<&'a str> {
    let mut rated: Vec<_> =
        candidates.into_iter().map(|candidate| (strsim::jaro_winkler(name, candidate), candidate)).collect();
    rated.sort_by(|a, b| b.0.total_cmp(&a.0));
    rated.into_iter().map(|(_, candidate)| candidate).collect()
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

    #[test]
    fn puts_what_is_most_alike_first() {
        let names = ["libc.so.6", "libz.so.1.2.13", "libgobject-2.0.so.0.7400.6", "ld-linux-x86-64.so.2"];
        assert_eq!(by_likeness("libgobjekt-2.0.so", names)[0], "libgobject-2.0.so.0.7400.6");
        assert_eq!(by_likeness("libz.so.2", names)[0], "libz.so.1.2.13");
    }
}
