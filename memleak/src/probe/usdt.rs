//! Probes that a target defines itself, as points to attach to.

use memleak_common::usdt::{ARGUMENTS, Argument};

use super::{
    plan::SkipReason,
    point::{AttachPoint, ProgramKind, UsdtSite},
    table::{Role, Row},
};
use crate::{
    arch::{
        self,
        placement::{Placement, Reason},
    },
    elf::UsdtPlace,
    target::object::{Elf, Object},
};

/// The points for one row, a probe of `object`: each place of it, or why not.
pub(super) fn points(
    index: u32,
    row: &Row,
    object: &Object,
    elf: &Elf,
) -> Vec<Result<AttachPoint, SkipReason>> {
    let Some((provider, name)) = row.function.split_once(':') else { return Vec::new() };
    let places = elf.usdt_places(provider, name);
    places.iter().map(|place| point(index, row, object, elf, place)).collect()
}

fn point(
    index: u32,
    row: &Row,
    object: &Object,
    elf: &Elf,
    place: &UsdtPlace,
) -> Result<AttachPoint, SkipReason> {
    let unread = || SkipReason::Arguments(place.arguments.clone());
    let wanted = row.probe.arguments().into_iter().filter(|number| usize::from(*number) < ARGUMENTS);
    let needed = wanted.max().map_or(0, |last| usize::from(last) + 1);
    let mut arguments = [Argument::default(); ARGUMENTS];
    let mut texts = split(&place.arguments).into_iter();
    for argument in arguments.iter_mut().take(needed) {
        let text = texts.next().ok_or_else(unread)?;
        *argument = arch::HOST.probe_argument(text).ok_or_else(unread)?;
    }
    let semaphore = match place.semaphore_vaddr {
        0 => None,
        vaddr => Some(elf.data_offset_of(vaddr).ok_or(SkipReason::NoCode)?),
    };
    Ok(AttachPoint {
        program: if row.role == Role::Release { ProgramKind::UsdtRelease } else { ProgramKind::UsdtAcquire },
        row: index,
        role: row.role,
        scope: row.scope,
        object: object.id,
        open_path: object.open_path.clone(),
        file_offset: elf.file_offset_of(place.vaddr).ok_or(SkipReason::NoCode)?,
        placement: Placement { offset: 0, reason: Reason::Own },
        function: row.function.to_string(),
        unclear: None,
        usdt: Some(UsdtSite { semaphore, arguments }),
    })
}

/// The arguments of a note. Between brackets spaces do not part them: `8@[sp, 16] 4@x0`.
fn split(text: &str) -> Vec<&str> {
    let mut depth = 0;
    let parts = text.split(move |letter: char| {
        match letter {
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        letter == ' ' && depth == 0
    });
    parts.filter(|part| !part.is_empty()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_parted_by_spaces_outside_of_brackets() {
        assert_eq!(split("8@%rdi -4@$1  8@(%rax)"), ["8@%rdi", "-4@$1", "8@(%rax)"]);
        assert_eq!(split("8@[sp, 16] 4@x0"), ["8@[sp, 16]", "4@x0"]);
        assert!(split("").is_empty());
    }
}
