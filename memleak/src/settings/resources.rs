//! Which resources are traced: built-in ones, pairs of the command line, files of them.

use std::{collections::HashSet, fmt::Write as _, path::PathBuf};

use memleak_common::probe::Resource;

use super::usage::UsageError;
use crate::{
    cli::{Cli, Pair},
    near::nearest,
    probe::{
        resource::{OF_PROCESSES, ResourceInfo},
        spec::{self, Spec, UserResource, files},
        table::{DEFAULT_RESOURCES, Role, Row, TABLE},
    },
};

/// What `-k` traces; with `-P` per-CPU memory as well.
const KERNEL: &[Resource] = &[Resource::Slab, Resource::Pages, Resource::Vmalloc];

/// What `-r`, `--acquire`, `--release` and `--resources-file` come to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Selection {
    /// All of them: built-in ones, and after them [`Resource::Custom`] for each that a user has
    /// described.
    pub resources: Vec<Resource>,
    /// Those that users have described, by the number of [`Resource::Custom`].
    pub user: Vec<UserResource>,
    /// Their rows.
    pub rows: Vec<Row>,
    /// Files of the configuration's folder that were left out, and why.
    pub warnings: Vec<String>,
}

/// What the command line asks for.
pub(super) fn select(cli: &Cli) -> Result<Selection, UsageError> {
    let is_asked = cli.growth
        || cli.usdt
        || !(cli.resources.is_empty() && cli.pairs.is_empty() && cli.resources_files.is_empty());
    if cli.kernel && is_asked {
        let why = "the kernel's resources are chosen by -P, --slab and --only-pid";
        return Err(UsageError::new("-r/--resource with -k", why, "leave one of them out"));
    }
    let mut selection = choose(cli)?;
    for (number, user) in (0..).zip(&selection.user) {
        let resource = Resource::Custom(number);
        let rows = spec::rows(resource, user)
            .map_err(|error| UsageError::of_line(&format!("resource {}", user.name), &error))?;
        selection.resources.push(resource);
        selection.rows.extend(rows);
    }
    Ok(selection)
}

/// Pairs written there are always traced. The resources of a file are all traced,
/// unless `-r` names some. Without any of these it is `heap` and `mmap`.
fn choose(cli: &Cli) -> Result<Selection, UsageError> {
    let of_line = pairs_of(&cli.pairs)?;
    let of_files = named_files(&cli.resources_files)?;
    for resource in of_line.iter().chain(&of_files) {
        refuse_built_in_name(resource)?;
    }
    if let Some(name) = first_twice(of_line.iter().chain(&of_files)) {
        let why = format!("two resources are named {name}");
        return Err(UsageError::new("--resources-file", why, "give one of them another name (NAME=...)"));
    }
    let growth = cli.growth.then(|| Resource::Growth.name().to_owned());
    let usdt = cli.usdt.then(|| Resource::OtelMemory.name().to_owned());
    let named: Vec<String> = cli.resources.iter().cloned().chain(growth).chain(usdt).collect();
    let mut selection = Selection { user: of_line, ..Selection::default() };
    if named.is_empty() {
        selection.user.extend(of_files);
        if selection.user.is_empty() {
            let percpu = if cli.percpu { &[Resource::Percpu][..] } else { &[] };
            selection.resources =
                if cli.kernel { [KERNEL, percpu].concat() } else { DEFAULT_RESOURCES.to_vec() };
        }
        return Ok(selection);
    }
    let mut of_folder = None;
    for name in names(&named)? {
        let has = |resource: &&UserResource| resource.name == name;
        if let Some(resource) = OF_PROCESSES.iter().find(|resource| resource.name() == name) {
            selection.resources.push(*resource);
        } else if selection.user.iter().any(|resource| has(&resource)) {
            // It is there already: one of the command line.
        } else if let Some(resource) = of_files.iter().find(has) {
            selection.user.push(resource.clone());
        } else {
            // Not before it is needed: a file there that is wrong does not concern other runs.
            let known = of_folder.get_or_insert_with(|| {
                let found = configured();
                selection.warnings.extend(found.warnings);
                found.user
            });
            match known.iter().find(has) {
                Some(resource) => selection.user.push(resource.clone()),
                None => {
                    return Err(unknown(&name, of_files.iter().chain(known.iter()), &selection.warnings));
                }
            }
        }
    }
    Ok(selection)
}

/// The text of `--list-resources`: a line for each built-in resource, then for each that a user has
/// described. The warnings are for standard error.
pub(super) fn list(cli: &Cli) -> Result<(String, Vec<String>), UsageError> {
    let configured = configured();
    let named = [pairs_of(&cli.pairs)?, named_files(&cli.resources_files)?].concat();
    for resource in &named {
        refuse_built_in_name(resource)?;
    }
    let is_new = |resource: &UserResource| named.iter().all(|other| other.name != resource.name);
    let others: Vec<_> = configured.user.into_iter().filter(is_new).collect();
    let mut rows: Vec<(String, String, Vec<&str>)> = Vec::new();
    for resource in OF_PROCESSES {
        let info = ResourceInfo::built_in(*resource);
        let of_resource = TABLE.iter().filter(|row| {
            row.probe.resource == resource.number() && row.role != Role::Shield && !row.role.is_control()
        });
        rows.push((info.name, info.description, of_resource.map(|row| &*row.function).collect()));
    }
    for resource in named.iter().chain(&others) {
        let acquires = resource.acquires.iter().map(|acquire| acquire.head.function.as_str());
        let releases = resource.releases.iter().map(|release| release.head.function.as_str());
        let description = match resource.description.as_str() {
            "" => "described by the user".to_owned(),
            description => crate::escape::printable(description).into_owned(),
        };
        rows.push((resource.name.clone(), description, acquires.chain(releases).collect()));
    }
    let width = rows.iter().map(|(name, ..)| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for (name, description, functions) in rows {
        let _ = writeln!(text, "{name:width$}  {description}: {}", first_few(&functions));
    }
    Ok((text, configured.warnings))
}

/// The functions' names, of a long list the first ones.
fn first_few(functions: &[&str]) -> String {
    const FEW: usize = 5;
    let named = functions.get(..FEW).unwrap_or(functions).join(", ");
    match functions.len().saturating_sub(FEW) {
        0 => named,
        more => format!("{named} and {more} more"),
    }
}

/// What the configuration's folder holds. What cannot be used is left out, with a warning.
fn configured() -> Selection {
    let mut found = Selection::default();
    let Some(folder) = files::configured_folder() else { return found };
    for read in files::read_folder(&folder) {
        let resources = match read {
            Ok(resources) => resources,
            Err(error) => {
                found.warnings.push(error.to_string());
                continue;
            }
        };
        for resource in resources {
            let taken = found.user.iter().any(|other| other.name == resource.name);
            if taken || refuse_built_in_name(&resource).is_err() {
                let warning = format!(
                    "{}: resource {} is left out, since there is another of that name; rename it",
                    folder.display(),
                    resource.name
                );
                found.warnings.push(warning);
            } else {
                found.user.push(resource);
            }
        }
    }
    found
}

/// The pairs of `--acquire` and `--release`.
fn pairs_of(pairs: &[Pair]) -> Result<Vec<UserResource>, UsageError> {
    let wrong = |what: &str, error: &spec::SpecError| {
        let why = format!("column {}: {}", error.column, error.what);
        UsageError::new(what, why, format!("example: {}", error.kind.example()))
    };
    let read = |pair: &Pair| match pair {
        Pair::Acquire(text) => {
            spec::parse_acquire(text).map(Spec::Acquire).map_err(|error| wrong("--acquire", &error))
        }
        Pair::Release(text) => {
            spec::parse_release(text).map(Spec::Release).map_err(|error| wrong("--release", &error))
        }
    };
    let specs = pairs.iter().map(read).collect::<Result<Vec<_>, _>>()?;
    spec::group(specs).map_err(|error| UsageError::of_line(error.option(), &error))
}

fn named_files(paths: &[PathBuf]) -> Result<Vec<UserResource>, UsageError> {
    let mut all = Vec::new();
    for path in paths {
        let found =
            files::read_named(path).map_err(|error| UsageError::of_line("--resources-file", &error))?;
        if found.is_empty() {
            let why = format!("{} describes no resource", path.display());
            return Err(UsageError::new("--resources-file", why, "write [[resource]] before each of them"));
        }
        all.extend(found);
    }
    Ok(all)
}

fn refuse_built_in_name(resource: &UserResource) -> Result<(), UsageError> {
    match Resource::ALL.iter().any(|other| other.name() == resource.name) {
        false => Ok(()),
        true => {
            let why = format!("{} is a built-in resource's name", resource.name);
            Err(UsageError::new("--acquire", why, "give yours another name (NAME=...)"))
        }
    }
}

fn first_twice<'a>(resources: impl Iterator<Item = &'a UserResource>) -> Option<&'a str> {
    let mut seen = HashSet::new();
    resources.map(|resource| resource.name.as_str()).find(|name| !seen.insert(*name))
}

/// The names of `-r`, each once.
fn names(values: &[String]) -> Result<Vec<String>, UsageError> {
    let mut names: Vec<String> = Vec::new();
    for name in values.iter().flat_map(|value| value.split(',')).map(str::trim) {
        if name.is_empty() {
            let why = "a name in it is empty";
            return Err(UsageError::new("-r/--resource", why, "give names as --list-resources prints them"));
        }
        if names.iter().all(|other| other != name) {
            names.push(name.to_owned());
        }
    }
    Ok(names)
}

/// `left_out`: files that may describe it, and why they are not used.
fn unknown<'a>(name: &str, user: impl Iterator<Item = &'a UserResource>, left_out: &[String]) -> UsageError {
    let why = format!("'{name}' is not a resource");
    if Resource::ALL.iter().any(|resource| resource.name() == name) {
        return UsageError::new("-r/--resource", format!("{name} is the kernel's"), "trace it with -k");
    }
    let known = OF_PROCESSES.iter().map(|resource| resource.name());
    let known: Vec<&str> = known.chain(user.map(|resource| resource.name.as_str())).collect();
    let mut remedy = match nearest(name, known.iter().copied()) {
        Some(near) => format!("did you mean {near}? (see --list-resources)"),
        None => "give one that --list-resources prints".to_owned(),
    };
    for reason in left_out {
        let _ = write!(remedy, "; left out: {reason}");
    }
    UsageError::new("-r/--resource", why, remedy)
}
