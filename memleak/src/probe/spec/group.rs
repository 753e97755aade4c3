//! Which specifications of a command line belong together.

use super::{AcquireSpec, ReleaseSpec, Spec};

/// A resource that a user has described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserResource {
    /// Its name: given, or that of its first acquire's function.
    pub name: String,
    /// What it is, for `--list-resources`; may be empty.
    pub description: String,
    /// What several of them are called in a report's heading (`connections`); empty if nothing
    /// was said.
    pub unit: String,
    /// What hands it out; one at least.
    pub acquires: Vec<AcquireSpec>,
    /// What takes it back; one at least.
    pub releases: Vec<ReleaseSpec>,
}

/// Specifications that make no resource: `<why>; <what to do>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GroupError {
    /// The first one releases.
    #[error(
        "no --acquire before '{0}'; first say what hands out what it releases: --acquire 'OBJECT:FUNCTION -> ret'"
    )]
    ReleaseFirst(String),
    /// A resource only grows.
    #[error("nothing releases what '{0}' acquires; add --release 'OBJECT:FUNCTION(arg1)' after it")]
    NoRelease(String),
    /// A resource is never there.
    #[error(
        "nothing acquires what '{0}' releases; add --acquire 'NAME=OBJECT:FUNCTION -> ret' with the same name"
    )]
    NoAcquire(String),
}

impl GroupError {
    /// The option that is wrong.
    pub fn option(&self) -> &'static str {
        match self {
            Self::NoRelease(_) => "--acquire",
            Self::ReleaseFirst(_) | Self::NoAcquire(_) => "--release",
        }
    }
}

/// Puts the specifications of a command line together, in their order: a release belongs to the
/// acquire before it; an acquire directly after another one belongs to the same resource, and one
/// after a release begins a new one. A name puts a specification, and those without a name after
/// it, into the resource of that name.
pub fn group(specs: Vec<Spec>) -> Result<Vec<UserResource>, GroupError> {
    let mut resources: Vec<UserResource> = Vec::new();
    let mut current = None;
    let mut after_acquire = false;
    for spec in specs {
        let is_acquire = matches!(spec, Spec::Acquire(_));
        let at = match &spec.head().resource {
            Some(name) => resources.iter().position(|resource| resource.name == *name),
            None if is_acquire && !after_acquire => None,
            None => current,
        };
        let at = match at {
            Some(at) => at,
            None if !is_acquire && spec.head().resource.is_none() => {
                return Err(GroupError::ReleaseFirst(spec.to_string()));
            }
            None => {
                let name = spec.head().resource.clone().unwrap_or_default();
                resources.push(UserResource { name, ..UserResource::default() });
                resources.len() - 1
            }
        };
        current = Some(at);
        after_acquire = is_acquire;
        if let Some(resource) = resources.get_mut(at) {
            match spec {
                Spec::Acquire(acquire) => resource.acquires.push(acquire),
                Spec::Release(release) => resource.releases.push(release),
            }
        }
    }
    for at in 0..resources.len() {
        let name = check(&resources, at)?;
        if let Some(resource) = resources.get_mut(at) {
            resource.name = name;
        }
    }
    Ok(resources)
}

/// Checks that a resource has both sides, and gives its name: one that no other has.
fn check(resources: &[UserResource], at: usize) -> Result<String, GroupError> {
    let resource = resources.get(at).cloned().unwrap_or_default();
    let acquire = match (resource.acquires.first(), resource.releases.first()) {
        (Some(acquire), Some(_)) => acquire,
        (Some(acquire), None) => return Err(GroupError::NoRelease(acquire.to_string())),
        (None, release) => {
            return Err(GroupError::NoAcquire(release.map(ToString::to_string).unwrap_or_default()));
        }
    };
    if !resource.name.is_empty() {
        return Ok(resource.name);
    }
    let base = acquire.head.function.as_str();
    let taken = |name: &str| resources.iter().any(|other| other.name == name);
    let numbered = (2..).map(|number| format!("{base}-{number}"));
    Ok(std::iter::once(base.to_owned()).chain(numbered).find(|name| !taken(name)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{parse_acquire, parse_release},
        *,
    };

    /// `+text` acquires, `-text` releases.
    fn grouped(texts: &[&str]) -> Result<Vec<(String, usize, usize)>, GroupError> {
        let specs = texts.iter().map(|text| match text.split_at(1) {
            ("+", text) => Spec::Acquire(parse_acquire(text).expect(text)),
            (_, text) => Spec::Release(parse_release(text).expect(text)),
        });
        let numbers =
            |resource: UserResource| (resource.name, resource.acquires.len(), resource.releases.len());
        group(specs.collect()).map(|resources| resources.into_iter().map(numbers).collect())
    }

    fn expect(texts: &[&str], expected: &[(&str, usize, usize)]) {
        let expected: Vec<_> = expected.iter().map(|(name, a, r)| ((*name).to_owned(), *a, *r)).collect();
        assert_eq!(grouped(texts), Ok(expected), "{texts:?}");
    }

    #[test]
    fn goes_by_the_order_of_the_command_line() {
        expect(&[], &[]);
        expect(&["+a -> ret", "-b(arg1)"], &[("a", 1, 1)]);
        expect(&["+a -> ret", "+a2 -> ret", "-b(arg1)", "-b2(arg1)"], &[("a", 2, 2)]);
        expect(&["+a -> ret", "-b(arg1)", "+c -> ret", "-d(arg1)", "-e(arg1)"], &[("a", 1, 1), ("c", 1, 2)]);
    }

    #[test]
    fn goes_by_name_where_there_is_one() {
        expect(&["+x=a -> ret", "-b(arg1)"], &[("x", 1, 1)]);
        expect(&["+x=a -> ret", "+y=c -> ret", "-x=b(arg1)", "-y=d(arg1)"], &[("x", 1, 1), ("y", 1, 1)]);
        expect(&["-x=b(arg1)", "+x=a -> ret"], &[("x", 1, 1)]);
        expect(&["+x=a -> ret", "-b(arg1)", "+x=c -> ret", "+d -> ret"], &[("x", 3, 1)]);
    }

    #[test]
    fn names_are_never_the_same() {
        expect(
            &["+l:a -> ret", "-b(arg1)", "+m:a -> ret", "-b(arg1)", "+a=z -> ret", "-b(arg1)"],
            &[("a-2", 1, 1), ("a-3", 1, 1), ("a", 1, 1)],
        );
    }

    #[test]
    fn wants_both_sides() {
        let line = |texts: &[&str]| grouped(texts).expect_err("is refused").to_string();
        assert!(line(&["-b(arg1)", "+a -> ret"]).starts_with("no --acquire before 'b(arg1)'; "));
        assert!(line(&["+a -> ret"]).starts_with("nothing releases what 'a -> ret' acquires; "));
        assert!(line(&["+a -> ret", "-x=b(arg1)"]).starts_with("nothing releases what 'a -> ret' "));
        let unpaired = line(&["+a -> ret", "-b(arg1)", "-x=c(arg1)"]);
        assert!(unpaired.starts_with("nothing acquires what 'x=c(arg1)'"), "{unpaired}");
    }
}
