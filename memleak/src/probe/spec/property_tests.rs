//! What is written reads as the same; what is not cannot do harm.

use proptest::prelude::*;

use super::{
    AcquireSpec, Comparison, Condition, Handle, Head, MAX_ARGUMENT, ReleaseSpec, Size, ValuePlace, Width,
    parse_acquire, parse_condition, parse_handle, parse_release, parse_size,
};

fn width() -> impl Strategy<Value = Width> {
    prop_oneof![Just(Width::Long), Just(Width::Int)]
}

fn argument() -> impl Strategy<Value = u8> {
    1..=MAX_ARGUMENT
}

fn released() -> impl Strategy<Value = Handle> {
    let place = prop_oneof![
        argument().prop_map(ValuePlace::Argument),
        (argument(), any::<i16>()).prop_map(|(argument, offset)| ValuePlace::Behind { argument, offset }),
        argument().prop_map(|argument| ValuePlace::Behind { argument, offset: 0 }),
    ];
    (place, width()).prop_map(|(place, width)| Handle { place, width })
}

fn handle() -> impl Strategy<Value = Handle> {
    prop_oneof![width().prop_map(|width| Handle { place: ValuePlace::Return, width }), released()]
}

fn condition() -> impl Strategy<Value = Condition> {
    let comparison = proptest::sample::select(Comparison::ALL.to_vec());
    (proptest::option::of(width()), comparison, any::<i64>())
        .prop_map(|(width, comparison, value)| Condition { width, comparison, value })
}

fn size() -> impl Strategy<Value = Size> {
    prop_oneof![
        Just(Size::None),
        argument().prop_map(Size::Argument),
        (argument(), argument()).prop_map(|(a, b)| Size::Product(a, b)),
        any::<u64>().prop_map(Size::Constant),
    ]
}

/// Objects of all characters, words of the grammar among them.
fn head() -> impl Strategy<Value = Head> {
    let object = prop_oneof![any::<String>(), "[a>\"\\\\:=(), \t/.0-9-]{1,20}", "lib[a-z+-]{1,8}\\.so"];
    let object = proptest::option::of(object.prop_filter("an object has a name", |text| !text.is_empty()));
    (proptest::option::of("[a-zA-Z0-9_.$-]{1,64}"), object, "[a-zA-Z0-9_.$]{1,40}")
        .prop_map(|(resource, object, function)| Head { resource, object, function })
}

fn acquire() -> impl Strategy<Value = AcquireSpec> {
    let places = (handle(), proptest::option::of(handle()), proptest::option::of(released()));
    let rest = (any::<bool>(), proptest::option::of(condition()));
    (head(), size(), places, rest).prop_map(|(head, size, (handle, second, releases), (counted, success))| {
        AcquireSpec { head, size, handle, second, releases, counted, success }
    })
}

fn release() -> impl Strategy<Value = ReleaseSpec> {
    (head(), released(), proptest::option::of(condition())).prop_map(|(head, handle, success)| ReleaseSpec {
        head,
        handle,
        success,
    })
}

/// Texts that get far into the parser: the grammar's own words in any order.
fn nearly() -> impl Strategy<Value = String> {
    let words = [
        "->",
        "ret",
        "arg1",
        "arg",
        "arg99",
        "*",
        "(",
        ")",
        "+",
        "-",
        "==",
        "<",
        "if",
        "as",
        "int",
        "long",
        "size",
        "counted",
        "releasing",
        ",",
        ":",
        "=",
        "\"",
        "\\",
        "0",
        "0x",
        "18446744073709551616",
        "lib.so",
        "é",
        "\u{0}",
        " ",
        "\n",
    ];
    proptest::collection::vec(proptest::sample::select(words.to_vec()), 0..24)
        .prop_map(|words| words.concat())
}

/// Every parser takes the text or says where it is wrong: at a column that the text has, or right
/// after it.
fn survives(text: &str) {
    let columns = [
        parse_acquire(text).err(),
        parse_release(text).err(),
        parse_handle(text).err(),
        parse_size(text).err(),
        parse_condition(text).err(),
    ];
    for error in columns.into_iter().flatten() {
        assert!((1..=text.chars().count() + 1).contains(&error.column), "{text:?}: {error}");
        assert!(!error.what.is_empty());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_acquire_reads_as_it_was_written(written in acquire()) {
        prop_assert_eq!(parse_acquire(&written.to_string()), Ok(written));
    }

    #[test]
    fn a_release_reads_as_it_was_written(written in release()) {
        prop_assert_eq!(parse_release(&written.to_string()), Ok(written));
    }

    #[test]
    fn parts_read_as_they_were_written(handle in handle(), size in size(), condition in condition()) {
        prop_assert_eq!(parse_handle(&handle.to_string()), Ok(handle));
        prop_assert_eq!(parse_condition(&condition.to_string()), Ok(condition));
        prop_assert_eq!(parse_size(&size.to_string()), Ok(size));
    }

    #[test]
    fn what_is_read_is_written_the_same(text in nearly()) {
        if let Ok(read) = parse_acquire(&text) {
            prop_assert_eq!(parse_acquire(&read.to_string()), Ok(read));
        }
        survives(&text);
    }

    #[test]
    fn any_text_does_no_harm(text in any::<String>()) {
        survives(&text);
    }
}
