//! Rows of the probe table from what users have written.

use std::borrow::Cow;

use memleak_common::probe::{ProbeRow, Resource, flags, handle, size, success};

use super::{
    AcquireSpec, Comparison, Condition, Handle, Head, ReleaseSpec, Size, UserResource, ValuePlace, Width,
};
use crate::probe::table::{Role, Row, Scope};

/// A specification that can be read but not traced: `<why>; <what to do>`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RowError {
    /// A second handle that is not the first one's neighbour.
    #[error("'{0}': a second handle must directly follow the first one; write it as *argN, *(argN+{1})")]
    NotNeighbours(String, u8),
    /// No int says by itself that it is not a handle.
    #[error(
        "'{0}': nothing says when the int that an argument points to is a handle; add a condition, such as 'if ret == 0'"
    )]
    NoCondition(String),
    /// A comparison that is always the same.
    #[error("'{0}': {1} does not fit an int; write 'ret as long', or another number")]
    Number(String, i64),
}

/// The rows of a resource. If one of its handles is an int, all are.
pub fn rows(resource: Resource, user: &UserResource) -> Result<Vec<Row>, RowError> {
    let width = user.width();
    let is_counted = user.acquires.iter().any(|acquire| acquire.counted);
    let common = ProbeRow {
        resource: resource.number(),
        group: resource.number() << 8,
        handle_width: bytes(width),
        flags: if is_counted { flags::COUNTED } else { 0 }
            | if width == Width::Int { flags::ZERO_IS_HANDLE } else { 0 },
        ..ProbeRow::EMPTY
    };
    let acquires = user.acquires.iter().map(|acquire| acquire_row(acquire, common, width));
    acquires.chain(user.releases.iter().map(|release| release_row(release, common))).collect()
}

impl UserResource {
    /// The type of its handles: int if it is said of one.
    pub fn width(&self) -> Width {
        let acquired = self.acquires.iter().flat_map(|acquire| {
            [Some(acquire.handle), acquire.second, acquire.releases].into_iter().flatten()
        });
        let mut handles = acquired.chain(self.releases.iter().map(|release| release.handle));
        if handles.any(|handle| handle.width == Width::Int) { Width::Int } else { Width::Long }
    }
}

const fn bytes(width: Width) -> u8 {
    match width {
        Width::Long => 8,
        Width::Int => 4,
    }
}

fn row(head: &Head, role: Role, probe: ProbeRow) -> Row {
    Row {
        function: Cow::Owned(head.function.clone()),
        role,
        scope: Scope::User,
        object: head.object.clone(),
        probe,
    }
}

fn acquire_row(acquire: &AcquireSpec, common: ProbeRow, width: Width) -> Result<Row, RowError> {
    let mut probe = common;
    match acquire.handle.place {
        ValuePlace::Return => probe.handle = handle::RETURN,
        ValuePlace::Argument(argument) => {
            (probe.handle, probe.handle_arg) = (handle::ARG, from_zero(argument));
        }
        ValuePlace::Behind { argument, offset } => {
            (probe.handle, probe.handle_arg) = (handle::BEHIND_ARG, from_zero(argument));
            probe.handle_offset = offset.into();
        }
    }
    if let Some(second) = acquire.second {
        if !are_neighbours(acquire.handle.place, second.place, bytes(width)) {
            return Err(RowError::NotNeighbours(acquire.to_string(), bytes(width)));
        }
        probe.handle_count = 2;
    }
    match acquire.size {
        Size::None => {}
        Size::Argument(argument) => (probe.size, probe.size_arg) = (size::ARG, from_zero(argument)),
        Size::Product(a, b) => {
            (probe.size, probe.size_arg, probe.size_arg2) = (size::PRODUCT, from_zero(a), from_zero(b));
        }
        Size::Constant(bytes) => (probe.size, probe.constant) = (size::CONSTANT, bytes),
    }
    match (acquire.success, acquire.handle.place, width) {
        (Some(condition), place, _) => {
            let compared = match (condition.width, place) {
                (Some(said), _) => said,
                (None, ValuePlace::Return) => width,
                (None, _) => Width::Int,
            };
            set_success(&mut probe, condition, compared, || acquire.to_string())?;
        }
        (None, _, Width::Long) => probe.success = success::HANDLE,
        (None, ValuePlace::Return, Width::Int) => probe.success = success::AT_LEAST,
        (None, ValuePlace::Argument(_), Width::Int) => probe.success = success::ALWAYS,
        (None, ValuePlace::Behind { .. }, Width::Int) => {
            return Err(RowError::NoCondition(acquire.to_string()));
        }
    }
    let Some(released) = acquire.releases else {
        return Ok(row(&acquire.head, Role::Acquire, probe));
    };
    set_released(&mut probe, released);
    Ok(row(&acquire.head, Role::Resize, probe))
}

fn release_row(release: &ReleaseSpec, common: ProbeRow) -> Result<Row, RowError> {
    let mut probe = common;
    set_released(&mut probe, release.handle);
    let Some(condition) = release.success else {
        return Ok(row(&release.head, Role::Release, probe));
    };
    set_success(&mut probe, condition, release.success_width(), || release.to_string())?;
    Ok(row(&release.head, Role::FallibleRelease, probe))
}

/// Arguments of rows count from 0.
fn from_zero(argument: u8) -> u8 {
    argument.saturating_sub(1)
}

fn are_neighbours(first: ValuePlace, second: ValuePlace, width: u8) -> bool {
    match (first, second) {
        (
            ValuePlace::Behind { argument: a, offset: first },
            ValuePlace::Behind { argument: b, offset: second },
        ) => a == b && first.checked_add(width.into()) == Some(second),
        _ => false,
    }
}

fn set_released(probe: &mut ProbeRow, handle: Handle) {
    match handle.place {
        // The parser takes no such handle.
        ValuePlace::Return => {}
        ValuePlace::Argument(argument) => probe.release_arg = from_zero(argument),
        ValuePlace::Behind { argument, offset } => {
            probe.release_arg = from_zero(argument);
            probe.release_offset = offset.into();
            probe.flags |= flags::RELEASE_BEHIND;
        }
    }
}

fn set_success(
    probe: &mut ProbeRow,
    condition: Condition,
    width: Width,
    spec: impl Fn() -> String,
) -> Result<(), RowError> {
    let value = condition.value;
    let (kind, value) = match condition.comparison {
        Comparison::Equal => (success::EQUAL, Some(value)),
        Comparison::NotEqual => (success::NOT_EQUAL, Some(value)),
        Comparison::GreaterOrEqual => (success::AT_LEAST, Some(value)),
        Comparison::Greater => (success::AT_LEAST, value.checked_add(1)),
        Comparison::LessOrEqual => (success::AT_MOST, Some(value)),
        Comparison::Less => (success::AT_MOST, value.checked_sub(1)),
    };
    let fits = |value: &i64| width == Width::Long || i32::try_from(*value).is_ok();
    probe.success = kind;
    probe.success_value = value.filter(fits).ok_or_else(|| RowError::Number(spec(), condition.value))?;
    if width == Width::Long {
        probe.flags |= flags::WIDE_RETURN;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::{
        super::{parse_acquire, parse_release},
        *,
    };

    const CUSTOM: Resource = Resource::Custom(3);
    const BASE: ProbeRow = ProbeRow { resource: 256 + 3, group: (256 + 3) << 8, ..ProbeRow::EMPTY };

    fn of(acquire: &str, release: &str) -> Result<Vec<Row>, RowError> {
        let user = UserResource {
            acquires: vec![parse_acquire(acquire).expect(acquire)],
            releases: vec![parse_release(release).expect(release)],
            ..UserResource::default()
        };
        rows(CUSTOM, &user)
    }

    fn probes(acquire: &str, release: &str) -> [ProbeRow; 2] {
        let rows = of(acquire, release).expect("can be traced");
        [rows[0].probe, rows[1].probe]
    }

    #[test]
    fn the_examples_of_the_issue() {
        let rows = of("libfoo.so:foo_open -> ret", "foo_close(arg1)").expect("can be traced");
        assert_eq!(rows[0].probe, ProbeRow { handle: handle::RETURN, ..BASE });
        assert_eq!(rows[1].probe, ProbeRow { release_arg: 0, ..BASE });
        let heads: Vec<_> =
            rows.iter().map(|row| (&*row.function, row.role, row.scope, row.object.as_deref())).collect();
        assert_eq!(
            heads,
            [
                ("foo_open", Role::Acquire, Scope::User, Some("libfoo.so")),
                ("foo_close", Role::Release, Scope::User, None),
            ]
        );
        let [open, _] = probes("db:db_open(arg2 size) -> *arg1 if ret == 0", "db:db_close(arg1)");
        let expected = ProbeRow {
            handle: handle::BEHIND_ARG,
            handle_arg: 0,
            size: size::ARG,
            size_arg: 1,
            success: success::EQUAL,
            ..BASE
        };
        assert_eq!(open, expected);
    }

    #[test]
    fn an_int_is_an_int_for_the_whole_resource() {
        let int = ProbeRow { handle_width: 4, flags: flags::ZERO_IS_HANDLE, ..BASE };
        let expected = [
            ProbeRow { handle: handle::RETURN, success: success::AT_LEAST, ..int },
            ProbeRow { release_arg: 1, ..int },
        ];
        assert_eq!(probes("f -> ret as int", "g(arg2)"), expected);
        assert_eq!(probes("f -> ret", "g(arg2 as int)"), expected);
        let [lock, _] = probes("f -> arg3 as int", "g(arg1)");
        assert_eq!(lock, ProbeRow { handle: handle::ARG, handle_arg: 2, success: success::ALWAYS, ..int });
        let [pipe, _] = probes("f -> *arg1 as int, *(arg1+4) as int if ret == 0", "g(arg1)");
        let expected = ProbeRow {
            handle: handle::BEHIND_ARG,
            handle_arg: 0,
            handle_count: 2,
            success: success::EQUAL,
            ..int
        };
        assert_eq!(pipe, expected);
    }

    #[test]
    fn everything_has_its_field() {
        let [resize, release] = probes(
            "f(arg1*arg2 size) -> ret counted releasing *(arg4-8) if ret != 0",
            "g(*arg3) if ret as long >= -1",
        );
        let common = ProbeRow { flags: flags::COUNTED, ..BASE };
        let expected = ProbeRow {
            handle: handle::RETURN,
            size: size::PRODUCT,
            size_arg: 0,
            size_arg2: 1,
            release_arg: 3,
            release_offset: -8,
            success: success::NOT_EQUAL,
            flags: flags::COUNTED | flags::RELEASE_BEHIND | flags::WIDE_RETURN,
            ..common
        };
        assert_eq!(resize, expected);
        let expected = ProbeRow {
            release_arg: 2,
            success: success::AT_LEAST,
            success_value: -1,
            flags: flags::COUNTED | flags::RELEASE_BEHIND | flags::WIDE_RETURN,
            ..common
        };
        assert_eq!(release, expected);
        let rows = of("f(64 size) -> ret releasing arg1", "g(arg1) if ret == 0").expect("can be traced");
        assert_eq!((rows[0].probe.size, rows[0].probe.constant), (size::CONSTANT, 64));
        assert_eq!((rows[0].role, rows[1].role), (Role::Resize, Role::FallibleRelease));
    }

    #[test]
    fn every_comparison_is_one_that_the_programs_know() {
        for (sign, kind, value) in [
            ("==", success::EQUAL, 7),
            ("!=", success::NOT_EQUAL, 7),
            (">=", success::AT_LEAST, 7),
            (">", success::AT_LEAST, 8),
            ("<=", success::AT_MOST, 7),
            ("<", success::AT_MOST, 6),
        ] {
            let [open, _] = probes(&format!("f -> *arg1 if ret {sign} 7"), "g(arg1)");
            assert_eq!((open.success, open.success_value), (kind, value), "{sign}");
        }
    }

    #[test]
    fn what_cannot_be_traced_is_said() {
        for (acquire, words) in [
            ("f -> ret, arg2", "*argN, *(argN+8)"),
            ("f -> *arg1, *(arg1+4)", "*argN, *(argN+8)"),
            ("f -> *arg1, *(arg2+8)", "must directly follow"),
            ("f -> *arg1 as int", "add a condition, such as 'if ret == 0'"),
            ("f -> *arg1 if ret == 4294967296", "4294967296 does not fit an int"),
            ("f -> *arg1 if ret > 2147483647", "2147483647 does not fit an int"),
            ("f -> ret if ret > 9223372036854775807", "does not fit an int"),
        ] {
            let error = of(acquire, "g(arg1)").expect_err(acquire).to_string();
            assert!(error.contains(words) && error.contains("; "), "{acquire}: {error}");
            assert!(error.starts_with(&format!("'{acquire}'")), "{acquire}: {error}");
        }
    }
}
