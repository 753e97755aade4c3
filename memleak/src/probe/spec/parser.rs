//! Reads one specification; the grammar is in the module above.

use super::{
    AcquireSpec, Comparison, Condition, Handle, Head, MAX_ARGUMENT, ReleaseSpec, Size, ValuePlace, Width,
    lexer::{Lexer, Token},
};

/// Longest name of a resource, in characters.
const MAX_NAME: usize = 64;

/// What was to be read: for the example that an error ends with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SpecKind {
    /// `--acquire`.
    Acquire,
    /// `--release`.
    Release,
    /// A handle alone, in a file.
    Handle,
    /// A size alone, in a file.
    Size,
    /// A condition alone, in a file.
    Condition,
}

impl SpecKind {
    /// One that is right.
    pub const fn example(self) -> &'static str {
        match self {
            Self::Acquire => "libfoo.so:foo_open(arg2 size) -> *arg1 if ret == 0",
            Self::Release => "libfoo.so:foo_close(arg1)",
            Self::Handle => "*arg1",
            Self::Size => "arg1*arg2",
            Self::Condition => "ret == 0",
        }
    }
}

/// What is wrong with a specification.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("column {column}: {what}; example: {}", .kind.example())]
pub struct SpecError {
    /// Where, in characters from 1.
    pub column: usize,
    /// What was expected there, and what was found.
    pub what: String,
    /// What was to be read.
    pub kind: SpecKind,
}

/// Reads the value of `--acquire`.
pub fn parse_acquire(text: &str) -> Result<AcquireSpec, SpecError> {
    Parser::new(text, SpecKind::Acquire).acquire()
}

/// Reads the value of `--release`.
pub fn parse_release(text: &str) -> Result<ReleaseSpec, SpecError> {
    Parser::new(text, SpecKind::Release).release()
}

/// Reads a handle alone, such as `*arg1`.
pub fn parse_handle(text: &str) -> Result<Handle, SpecError> {
    let mut parser = Parser::new(text, SpecKind::Handle);
    let handle = parser.handle("ret, argN or *argN")?;
    parser.end("as int")?;
    Ok(handle)
}

/// Reads a size alone, such as `arg1*arg2` or `4096`.
pub fn parse_size(text: &str) -> Result<Size, SpecError> {
    let mut parser = Parser::new(text, SpecKind::Size);
    let size = parser.size("argN, argN*argN or a number of bytes")?;
    parser.end("* and an argument")?;
    Ok(size)
}

/// Reads a condition alone, such as `ret == 0`.
pub fn parse_condition(text: &str) -> Result<Condition, SpecError> {
    let mut parser = Parser::new(text, SpecKind::Condition);
    let condition = parser.condition()?;
    parser.end("nothing more")?;
    Ok(condition)
}

struct Parser<'a> {
    lexer: Lexer<'a>,
    kind: SpecKind,
}

impl<'a> Parser<'a> {
    fn new(text: &'a str, kind: SpecKind) -> Self {
        Self { lexer: Lexer::new(text), kind }
    }

    fn acquire(&mut self) -> Result<AcquireSpec, SpecError> {
        let head = self.head()?;
        let mut size = Size::None;
        let mut expected = "( or ->";
        if self.take_sign("(") {
            expected = "->";
            if !self.take_sign(")") {
                size = self.size("argN, argN*argN or a number, then the word size")?;
                self.expect_word("size", "the word size")?;
                self.expect_sign(")", ")")?;
            }
        }
        self.expect_sign("->", expected)?;
        let handle = self.handle("ret, argN or *argN after ->")?;
        let second = match self.take_sign(",") {
            true => Some(self.handle("ret, argN or *argN after the comma")?),
            false => None,
        };
        let (mut counted, mut releases) = (false, None);
        loop {
            let column = self.lexer.column();
            if self.take_word("counted") {
                if std::mem::replace(&mut counted, true) {
                    return Err(self.error_at(column, "counted stands there twice".to_owned()));
                }
            } else if self.take_word("releasing") {
                let released = self.released_handle("argN or *argN after releasing")?;
                if releases.replace(released).is_some() {
                    return Err(self.error_at(column, "releasing stands there twice".to_owned()));
                }
            } else {
                break;
            }
        }
        let success = self.success("counted, releasing, if")?;
        Ok(AcquireSpec { head, size, handle, second, releases, counted, success })
    }

    fn release(&mut self) -> Result<ReleaseSpec, SpecError> {
        let head = self.head()?;
        self.expect_sign("(", "( and the argument with the handle")?;
        let handle = self.released_handle("argN or *argN")?;
        self.expect_sign(")", ")")?;
        let success = self.success("if")?;
        Ok(ReleaseSpec { head, handle, success })
    }

    /// `[name=][object:]function`
    fn head(&mut self) -> Result<Head, SpecError> {
        let (mut resource, mut object) = (None, None);
        loop {
            let column = self.lexer.column();
            let Some(word) = self.lexer.head_word() else {
                return Err(self.error_at(column, "the quote has no end".to_owned()));
            };
            let found = if word.is_empty() { self.found() } else { format!("'{word}'") };
            if self.lexer.take_if('=') {
                let fits = is_resource_name(&word) && resource.is_none() && object.is_none();
                if !fits {
                    let what = format!(
                        "expected one name of 1 to {MAX_NAME} letters, digits, _ . $ or - before =, found {found}"
                    );
                    return Err(self.error_at(column, what));
                }
                resource = Some(word);
            } else if self.lexer.take_if(':') {
                if object.is_some() {
                    let what = format!(
                        "expected a function after the object, found {found} and a colon; a C++ function goes by its \
                         symbol (nm -D prints it)"
                    );
                    return Err(self.error_at(column, what));
                }
                if word.is_empty() {
                    return Err(self.error_at(column, format!("expected an object, found {found}")));
                }
                object = Some(word);
            } else if is_symbol(&word) {
                return Ok(Head { resource, object, function: word });
            } else {
                let what = match object {
                    None => "expected OBJECT:FUNCTION or a function",
                    Some(_) => "expected a function's symbol",
                };
                return Err(self.error_at(column, format!("{what}, found {found}")));
            }
        }
    }

    fn success(&mut self, expected: &str) -> Result<Option<Condition>, SpecError> {
        if self.take_word("if") {
            let condition = self.condition()?;
            self.end("nothing more")?;
            return Ok(Some(condition));
        }
        self.end(expected)?;
        Ok(None)
    }

    fn condition(&mut self) -> Result<Condition, SpecError> {
        self.expect_word("ret", "ret, which is what can be compared")?;
        let width = self.width()?;
        let Some(comparison) = Comparison::ALL.into_iter().find(|other| self.take_sign(other.sign())) else {
            return Err(self.unexpected("one of == != < <= > >="));
        };
        let column = self.lexer.column();
        let is_negative = self.take_sign("-");
        let magnitude = i128::from(self.number("a whole number")?);
        let value = i64::try_from(if is_negative { -magnitude } else { magnitude });
        let value = value.map_err(|_| self.error_at(column, "the number does not fit 64 bits".to_owned()))?;
        Ok(Condition { width, comparison, value })
    }

    fn size(&mut self, expected: &str) -> Result<Size, SpecError> {
        if self.take_word("none") {
            return Ok(Size::None);
        }
        let Some(first) = self.argument()? else {
            return self.number(expected).map(Size::Constant);
        };
        if !self.take_sign("*") {
            return Ok(Size::Argument(first));
        }
        match self.argument()? {
            Some(second) => Ok(Size::Product(first, second)),
            None => Err(self.unexpected("an argument after *")),
        }
    }

    fn released_handle(&mut self, expected: &str) -> Result<Handle, SpecError> {
        if self.lexer.peek() == Token::Word("ret") {
            return Err(
                self.unexpected(&format!("{expected}, since it is read when the function is entered"))
            );
        }
        self.handle(expected)
    }

    fn handle(&mut self, expected: &str) -> Result<Handle, SpecError> {
        let place = if self.take_word("ret") {
            ValuePlace::Return
        } else if self.take_sign("*") {
            self.behind()?
        } else {
            match self.argument()? {
                Some(argument) => ValuePlace::Argument(argument),
                None => return Err(self.unexpected(expected)),
            }
        };
        Ok(Handle { place, width: self.width()?.unwrap_or_default() })
    }

    /// What follows the `*` of `*arg1` and `*(arg1+8)`.
    fn behind(&mut self) -> Result<ValuePlace, SpecError> {
        let in_brackets = self.take_sign("(");
        let Some(argument) = self.argument()? else {
            return Err(self.unexpected(if in_brackets { "argN" } else { "argN or (argN+OFFSET) after *" }));
        };
        if !in_brackets {
            return Ok(ValuePlace::Behind { argument, offset: 0 });
        }
        let sign = if self.take_sign("-") { -1 } else { i64::from(self.take_sign("+")) };
        let mut offset = 0;
        if sign != 0 {
            let column = self.lexer.column();
            let bytes = self.number("the offset in bytes")?;
            offset = i64::try_from(bytes)
                .ok()
                .and_then(|bytes| i16::try_from(sign * bytes).ok())
                .ok_or_else(|| self.error_at(column, "an offset is from -32768 to 32767 bytes".to_owned()))?;
        }
        self.expect_sign(")", if sign == 0 { "+, - or )" } else { ")" })?;
        Ok(ValuePlace::Behind { argument, offset })
    }

    /// `as int` or `as long`, if it follows.
    fn width(&mut self) -> Result<Option<Width>, SpecError> {
        if !self.take_word("as") {
            return Ok(None);
        }
        for (name, width) in [("int", Width::Int), ("long", Width::Long)] {
            if self.take_word(name) {
                return Ok(Some(width));
            }
        }
        Err(self.unexpected("int or long after as"))
    }

    /// `argN`, if it follows: an N that is none is an error.
    fn argument(&mut self) -> Result<Option<u8>, SpecError> {
        let Token::Word(word) = self.lexer.peek() else { return Ok(None) };
        let Some(digits) = word.strip_prefix("arg") else { return Ok(None) };
        let number = digits.parse().ok().filter(|number| (1..=MAX_ARGUMENT).contains(number));
        if number.is_none() || digits.starts_with(['0', '+']) {
            return Err(self.unexpected(&format!("arg1 to arg{MAX_ARGUMENT}")));
        }
        self.lexer.next();
        Ok(number)
    }

    fn number(&mut self, expected: &str) -> Result<u64, SpecError> {
        let Token::Word(word) = self.lexer.peek() else { return Err(self.unexpected(expected)) };
        let (digits, radix) = match word.strip_prefix("0x").or(word.strip_prefix("0X")) {
            Some(digits) => (digits, 16),
            None => (word, 10),
        };
        let Ok(number) = u64::from_str_radix(digits, radix) else { return Err(self.unexpected(expected)) };
        self.lexer.next();
        Ok(number)
    }

    fn take_sign(&mut self, sign: &str) -> bool {
        self.take(&Token::Sign(sign))
    }

    fn take_word(&mut self, word: &str) -> bool {
        self.take(&Token::Word(word))
    }

    fn take(&mut self, token: &Token<'_>) -> bool {
        let found = self.lexer.peek() == *token;
        if found {
            self.lexer.next();
        }
        found
    }

    fn expect_sign(&mut self, sign: &str, expected: &str) -> Result<(), SpecError> {
        if self.take_sign(sign) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    fn expect_word(&mut self, word: &str, expected: &str) -> Result<(), SpecError> {
        if self.take_word(word) { Ok(()) } else { Err(self.unexpected(expected)) }
    }

    /// Nothing follows; `expected` might have.
    fn end(&mut self, expected: &str) -> Result<(), SpecError> {
        match self.lexer.peek() {
            Token::End => Ok(()),
            _ if expected == "nothing more" => Err(self.unexpected(expected)),
            _ => Err(self.unexpected(&format!("{expected} or the end"))),
        }
    }

    fn unexpected(&mut self, expected: &str) -> SpecError {
        let column = self.lexer.column();
        let found = self.found();
        self.error_at(column, format!("expected {expected}, found {found}"))
    }

    /// What comes next, for an error.
    fn found(&self) -> String {
        match self.lexer.peek() {
            Token::Word(text) | Token::Sign(text) => format!("'{text}'"),
            Token::Other(c) => format!("'{c}'"),
            Token::End => "the end".to_owned(),
        }
    }

    fn error_at(&self, column: usize, what: String) -> SpecError {
        SpecError { column, what, kind: self.kind }
    }
}

/// A name that a resource can be given.
pub(super) fn is_resource_name(name: &str) -> bool {
    (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| is_symbol_byte(byte) || byte == b'-')
}

/// A function's symbol, as a linker has it.
pub(super) fn is_symbol(word: &str) -> bool {
    !word.is_empty() && word.bytes().all(is_symbol_byte)
}

fn is_symbol_byte(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'$')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn long(place: ValuePlace) -> Handle {
        Handle { place, width: Width::Long }
    }

    fn head(resource: Option<&str>, object: Option<&str>, function: &str) -> Head {
        let own = |text: Option<&str>| text.map(str::to_owned);
        Head { resource: own(resource), object: own(object), function: function.to_owned() }
    }

    fn plain(head: Head, handle: Handle) -> AcquireSpec {
        AcquireSpec {
            head,
            size: Size::None,
            handle,
            second: None,
            releases: None,
            counted: false,
            success: None,
        }
    }

    const ZERO: Condition = Condition { width: None, comparison: Comparison::Equal, value: 0 };

    #[test]
    fn reads_the_examples_of_the_issue() {
        assert_eq!(
            parse_acquire("libfoo.so:foo_open -> ret"),
            Ok(plain(head(None, Some("libfoo.so"), "foo_open"), long(ValuePlace::Return)))
        );
        let handle = long(ValuePlace::Argument(1));
        assert_eq!(
            parse_release("libfoo.so:foo_close(arg1)"),
            Ok(ReleaseSpec { head: head(None, Some("libfoo.so"), "foo_close"), handle, success: None })
        );
        assert_eq!(
            parse_acquire("db:db_open(arg2 size) -> *arg1 if ret == 0"),
            Ok(AcquireSpec {
                size: Size::Argument(2),
                success: Some(ZERO),
                ..plain(
                    head(None, Some("db"), "db_open"),
                    long(ValuePlace::Behind { argument: 1, offset: 0 })
                )
            })
        );
    }

    #[test]
    fn reads_everything_at_once() {
        let text = r#" my-res = "/opt/a b/lib\"x\\y.so" : _ZN3foo4openEv.isra.0 (arg1 * arg2 size)->*( arg3 - 0x10 ) as int ,
                       *arg4 as long releasing *(arg6+8) counted if ret as long >= -0x2 "#;
        let read = parse_acquire(text).expect("is right");
        let object = "/opt/a b/lib\"x\\y.so";
        let expected = AcquireSpec {
            head: head(Some("my-res"), Some(object), "_ZN3foo4openEv.isra.0"),
            size: Size::Product(1, 2),
            handle: Handle { place: ValuePlace::Behind { argument: 3, offset: -16 }, width: Width::Int },
            second: Some(long(ValuePlace::Behind { argument: 4, offset: 0 })),
            releases: Some(long(ValuePlace::Behind { argument: 6, offset: 8 })),
            counted: true,
            success: Some(Condition {
                width: Some(Width::Long),
                comparison: Comparison::GreaterOrEqual,
                value: -2,
            }),
        };
        assert_eq!(read, expected);
        assert_eq!(
            read.to_string(),
            "my-res=\"/opt/a b/lib\\\"x\\\\y.so\":_ZN3foo4openEv.isra.0(arg1*arg2 size) -> *(arg3-16) as int, *arg4 \
             counted releasing *(arg6+8) if ret as long >= -2"
        );
    }

    #[test]
    fn reads_what_may_be_left_out() {
        for text in ["f->ret", "f() -> ret", "f ( ) -> ret as long", "\"f\" -> ret"] {
            assert_eq!(
                parse_acquire(text),
                Ok(plain(head(None, None, "f"), long(ValuePlace::Return))),
                "{text}"
            );
        }
        assert_eq!(parse_acquire("a=f -> ret").map(|read| read.head), Ok(head(Some("a"), None, "f")));
        for object in ["libstdc++.so.6", "/usr/lib/x-y_z/lib@1,2.so", "größe", "a+b-c"] {
            let text = format!("{object}:f -> ret");
            let expected = if object.contains(',') { None } else { Some(object) };
            let read = parse_acquire(&text).ok();
            assert_eq!(read.and_then(|read| read.head.object).as_deref(), expected, "{text}");
        }
    }

    /// What is wrong, the column and the words of the error.
    const WRONG_ACQUIRES: &[(&str, usize, &str)] = &[
        ("", 1, "expected OBJECT:FUNCTION or a function, found the end"),
        ("libfoo.so:foo_open -> foo", 23, "expected ret, argN or *argN after ->, found 'foo'"),
        ("libfoo.so:foo_open", 19, "expected ( or ->, found the end"),
        ("libfoo.so: -> ret", 12, "expected a function's symbol, found '->'"),
        ("libfoo.so:(arg1)", 11, "expected a function's symbol, found '('"),
        (":f -> ret", 1, "expected an object, found ':'"),
        ("a:ns::f -> ret", 3, "a C++ function goes by its symbol"),
        ("lib:operator! -> ret", 5, "expected a function's symbol, found 'operator!'"),
        ("x y=f -> ret", 3, "expected ( or ->, found 'y'"),
        ("a b -> ret", 3, "expected ( or ->, found 'b'"),
        ("a/b=f -> ret", 1, "before =, found 'a/b'"),
        ("=f -> ret", 1, "before =, found '='"),
        ("a=b=f -> ret", 3, "before =, found 'b'"),
        ("a:b=f -> ret", 3, "before =, found 'b'"),
        ("\"abc -> ret", 1, "the quote has no end"),
        ("\"abc\\", 1, "the quote has no end"),
        ("f(arg7 size) -> ret", 3, "expected arg1 to arg6, found 'arg7'"),
        ("f(arg0 size) -> ret", 3, "expected arg1 to arg6, found 'arg0'"),
        ("f(arg01 size) -> ret", 3, "expected arg1 to arg6, found 'arg01'"),
        ("f(arg size) -> ret", 3, "expected arg1 to arg6, found 'arg'"),
        ("f(arg2) -> ret", 7, "expected the word size, found ')'"),
        ("f(arg2*3 size) -> ret", 8, "expected an argument after *, found '3'"),
        ("f(size) -> ret", 3, "expected argN, argN*argN or a number, then the word size, found 'size'"),
        ("f(arg2 size -> ret", 13, "expected ), found '->'"),
        ("f(arg2 size) ret", 14, "expected ->, found 'ret'"),
        ("f -> ret.x", 9, "expected counted, releasing, if or the end, found '.'"),
        ("f -> *ret", 7, "expected argN or (argN+OFFSET) after *, found 'ret'"),
        ("f -> *(ret)", 8, "expected argN, found 'ret'"),
        ("f -> *(arg1*2)", 12, "expected +, - or ), found '*'"),
        ("f -> *(arg1+x)", 13, "expected the offset in bytes, found 'x'"),
        ("f -> *(arg1+32768)", 13, "an offset is from -32768 to 32767"),
        ("f -> *(arg1+8", 14, "expected ), found the end"),
        ("f -> ret as char", 13, "expected int or long after as, found 'char'"),
        ("f -> ret,", 10, "expected ret, argN or *argN after the comma, found the end"),
        ("f -> ret counted counted", 18, "counted stands there twice"),
        ("f -> ret releasing ret", 20, "expected argN or *argN after releasing"),
        ("f -> ret releasing arg1 releasing arg2", 25, "releasing stands there twice"),
        ("f -> ret if arg1 == 0", 13, "expected ret, which is what can be compared, found 'arg1'"),
        ("f -> ret if ret = 0", 17, "expected one of == != < <= > >=, found '='"),
        ("f -> ret if ret == x", 20, "expected a whole number, found 'x'"),
        ("f -> ret if ret == 9223372036854775808", 20, "the number does not fit 64 bits"),
        ("f -> ret if ret == 99999999999999999999", 20, "expected a whole number"),
        ("f -> ret if ret == 0 counted", 22, "expected nothing more, found 'counted'"),
        ("größe:f -> foo", 12, "expected ret, argN or *argN after ->, found 'foo'"),
    ];

    #[test]
    fn points_at_the_column_of_what_is_wrong() {
        for (text, column, words) in WRONG_ACQUIRES {
            let error = parse_acquire(text).expect_err(text);
            assert_eq!(error.column, *column, "{text}: {error}");
            let line = error.to_string();
            assert!(line.contains(words), "{text}: {line}");
            assert!(line.starts_with(&format!("column {column}: ")), "{text}: {line}");
            assert!(line.contains("; example: libfoo.so:"), "{text}: {line}");
        }
    }

    #[test]
    fn a_release_needs_its_handle_at_the_entry() {
        for (text, column, words) in [
            ("f", 2, "expected ( and the argument with the handle, found the end"),
            ("f()", 3, "expected argN or *argN, found ')'"),
            ("f(ret)", 3, "since it is read when the function is entered, found 'ret'"),
            ("f(arg1", 7, "expected ), found the end"),
            ("f(arg1) -> ret", 9, "expected if or the end, found '->'"),
        ] {
            let error = parse_release(text).expect_err(text);
            assert_eq!(error.column, column, "{text}: {error}");
            assert!(error.to_string().contains(words), "{text}: {error}");
            assert!(error.to_string().ends_with("example: libfoo.so:foo_close(arg1)"), "{text}: {error}");
        }
        let read = parse_release("f(*(arg2+4) as int) if ret == 0").expect("is right");
        assert_eq!(read.success, Some(ZERO));
        assert_eq!(read.success_width(), Width::Int);
    }

    #[test]
    fn every_example_is_right() {
        assert!(parse_acquire(SpecKind::Acquire.example()).is_ok());
        assert!(parse_release(SpecKind::Release.example()).is_ok());
        assert!(parse_handle(SpecKind::Handle.example()).is_ok());
        assert!(parse_size(SpecKind::Size.example()).is_ok());
        assert!(parse_condition(SpecKind::Condition.example()).is_ok());
    }

    #[test]
    fn parts_alone_end_where_they_end() {
        assert_eq!(parse_size("4096"), Ok(Size::Constant(4096)));
        assert_eq!(parse_size("arg2 * arg3"), Ok(Size::Product(2, 3)));
        assert_eq!(parse_handle("arg2 as int").map(|handle| handle.width), Ok(Width::Int));
        for error in [
            parse_size("arg1 size").map(|_| ()),
            parse_handle("ret counted").map(|_| ()),
            parse_condition("ret == 0 0").map(|_| ()),
        ] {
            assert!(error.is_err());
        }
    }
}
