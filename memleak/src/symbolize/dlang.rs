//! Names of functions in D: module, types and function (https://dlang.org/spec/abi.html,
//! "Name Mangling"). Types are read to get past them and not written: D's functions are known by
//! their whole names, as in its stack traces.

/// Nesting of types and templates that is followed.
const MAX_DEPTH: u32 = 64;
/// Parts of a name, those of templates' arguments included.
const MAX_PARTS: u32 = 4096;

/// The name that D's compilers have made `name` of; `None` if it is not one of theirs.
pub(super) fn demangle(name: &str) -> Option<String> {
    if name == "_Dmain" {
        return Some("D main".to_owned());
    }
    let mut reader = NameReader { text: name.as_bytes(), at: 0, depth: 0, parts: 0 };
    reader.skip("_D")?;
    if reader.takes(b'T') {
        reader.skip_adjustment()?;
    }
    let demangled = reader.qualified_name()?;
    // What is no function (`__initZ`, `__ModuleInfoZ`) has no type.
    if !reader.takes(b'Z') {
        reader.type_modifiers();
        reader.skip_type()?;
    }
    // Compilers add to what they have copied: `.isra.0`.
    matches!(reader.peek(), None | Some(b'.')).then_some(demangled)
}

struct NameReader<'a> {
    text: &'a [u8],
    at: usize,
    depth: u32,
    parts: u32,
}

impl<'a> NameReader<'a> {
    fn peek(&self) -> Option<u8> {
        self.text.get(self.at).copied()
    }

    fn next(&mut self) -> Option<u8> {
        let byte = self.peek()?;
        self.at += 1;
        Some(byte)
    }

    fn takes(&mut self, wanted: u8) -> bool {
        let is_it = self.peek() == Some(wanted);
        self.at += usize::from(is_it);
        is_it
    }

    fn starts_with(&self, wanted: &str) -> bool {
        self.text.get(self.at..).is_some_and(|rest| rest.starts_with(wanted.as_bytes()))
    }

    fn skip(&mut self, wanted: &str) -> Option<()> {
        self.starts_with(wanted).then(|| self.at += wanted.len())
    }

    fn number(&mut self) -> Option<usize> {
        let mut number: Option<usize> = None;
        while let Some(digit) = self.peek().filter(u8::is_ascii_digit) {
            self.at += 1;
            number = Some(number.unwrap_or(0).checked_mul(10)?.checked_add(usize::from(digit - b'0'))?);
        }
        number
    }

    /// Where a back reference leads to: `Q`, which was read, and how far before it, to the base of
    /// 26, the last digit in lower case.
    fn reference(&mut self) -> Option<usize> {
        let from = self.at.checked_sub(1)?;
        let mut distance = 0_usize;
        loop {
            let digit = self.next()?;
            let (value, is_last) = match digit {
                b'A'..=b'Z' => (digit - b'A', false),
                b'a'..=b'z' => (digit - b'a', true),
                _ => return None,
            };
            distance = distance.checked_mul(26)?.checked_add(usize::from(value))?;
            if is_last {
                return from.checked_sub(distance).filter(|_| distance > 0);
            }
        }
    }

    /// Goes one level down, if that is not too deep.
    fn within<T>(&mut self, read: impl FnOnce(&mut Self) -> Option<T>) -> Option<T> {
        if self.depth >= MAX_DEPTH {
            return None;
        }
        self.depth += 1;
        let result = read(self);
        self.depth -= 1;
        result
    }

    /// Of a function that comes before another one and corrects `this`: `hn16_` (LLVM), `i16_D`
    /// (GCC).
    fn skip_adjustment(&mut self) -> Option<()> {
        while self.peek()?.is_ascii_lowercase() {
            self.at += 1;
        }
        self.number()?;
        self.skip("_")?;
        self.takes(b'D');
        Some(())
    }

    fn begins_name(&self) -> bool {
        match self.peek() {
            Some(byte) if byte.is_ascii_digit() => true,
            Some(b'_') => self.starts_with("__T") || self.starts_with("__U"),
            // A name's reference leads to a number, a type's to a letter.
            Some(b'Q') => {
                let mut ahead = NameReader { at: self.at + 1, ..*self };
                let target = ahead.reference().and_then(|at| self.text.get(at));
                target.is_some_and(u8::is_ascii_digit)
            }
            _ => false,
        }
    }

    fn qualified_name(&mut self) -> Option<String> {
        let mut name = String::new();
        while self.begins_name() {
            self.parts += 1;
            if self.parts > MAX_PARTS {
                return None;
            }
            let part = self.symbol_name()?;
            if !part.is_empty() {
                if !name.is_empty() {
                    name.push('.');
                }
                name.push_str(&part);
            }
            // A function that another one is in: its type, without what it returns, and on it goes.
            let before = self.at;
            let is_method = self.takes(b'M');
            if is_method {
                self.type_modifiers();
            }
            let is_function = self.skip_function_without_result().is_some();
            if !(is_function && self.begins_name()) {
                self.at = before;
            }
        }
        (!name.is_empty()).then(|| {
            // The type that is left is of the function that was named last.
            if self.takes(b'M') {
                self.type_modifiers();
            }
            name
        })
    }

    fn symbol_name(&mut self) -> Option<String> {
        if self.takes(b'Q') {
            let at = self.reference()?;
            return NameReader { at, ..*self }.plain_name();
        }
        if self.peek() == Some(b'_') {
            return self.within(Self::template);
        }
        let before = self.at;
        let length = self.number()?;
        if length == 0 {
            return Some(String::new());
        }
        if self.starts_with("__T") || self.starts_with("__U") {
            let end = self.at.checked_add(length)?;
            let template = self.within(Self::template);
            // Older compilers give the length; what this one cannot read of it is passed over.
            self.at = if template.is_some() { self.at } else { end };
            return template.filter(|_| self.at == end);
        }
        self.at = before;
        self.plain_name()
    }

    /// A length, and so many bytes.
    fn plain_name(&mut self) -> Option<String> {
        let length = self.number().filter(|length| *length > 0)?;
        let name = self.text.get(self.at..self.at.checked_add(length)?)?;
        self.at += length;
        let name = std::str::from_utf8(name).ok()?;
        Some(match name {
            "__ctor" => "this".to_owned(),
            "__dtor" => "~this".to_owned(),
            "__postblit" => "this(this)".to_owned(),
            other => other.to_owned(),
        })
    }

    /// `__T`, a name, its arguments, `Z`.
    fn template(&mut self) -> Option<String> {
        self.at = self.at.checked_add(3)?;
        let name = self.symbol_name()?;
        let mut is_empty = true;
        while !self.takes(b'Z') {
            is_empty = false;
            self.takes(b'H');
            match self.next()? {
                b'T' => self.skip_type()?,
                b'V' => {
                    let kind = self.peek();
                    self.skip_type()?;
                    self.skip_value(kind)?;
                }
                b'S' => drop(self.symbol_argument()?),
                b'X' => {
                    let length = self.number()?;
                    self.at = self.at.checked_add(length)?;
                }
                _ => return None,
            }
        }
        Some(if is_empty { format!("{name}!()") } else { format!("{name}!(...)") })
    }

    fn symbol_argument(&mut self) -> Option<String> {
        self.within(|reader| {
            if reader.starts_with("_D") {
                reader.at += 2;
                let name = reader.qualified_name()?;
                if !reader.takes(b'Z') {
                    reader.skip_type()?;
                }
                return Some(name);
            }
            reader.qualified_name()
        })
    }

    fn type_modifiers(&mut self) {
        while self.takes(b'x') || self.takes(b'y') || self.takes(b'O') || self.skip("Ng").is_some() {}
    }

    fn skip_type(&mut self) -> Option<()> {
        self.within(|reader| match reader.next()? {
            b'x' | b'y' | b'O' | b'A' | b'P' => reader.skip_type(),
            b'N' => match reader.next()? {
                b'g' | b'h' => reader.skip_type(),
                b'n' => Some(()),
                _ => None,
            },
            b'G' => {
                reader.number()?;
                reader.skip_type()
            }
            b'H' => {
                reader.skip_type()?;
                reader.skip_type()
            }
            b'I' | b'C' | b'S' | b'E' | b'T' => reader.qualified_name().map(drop),
            b'D' => {
                reader.type_modifiers();
                if reader.takes(b'Q') {
                    return reader.reference().map(drop);
                }
                reader.skip_function_without_result()?;
                reader.skip_type()
            }
            b'F' | b'U' | b'W' | b'V' | b'R' | b'Y' => {
                reader.at -= 1;
                reader.skip_function_without_result()?;
                reader.skip_type()
            }
            b'B' => reader.skip_parameters(),
            b'Q' => reader.reference().map(drop),
            b'z' => matches!(reader.next()?, b'i' | b'k').then_some(()),
            basic => b"vghstiklmfdeopjqrcbauwn".contains(&basic).then_some(()),
        })
    }

    /// How it is called, its attributes and parameters.
    fn skip_function_without_result(&mut self) -> Option<()> {
        self.within(|reader| {
            b"FUWVRY".contains(&reader.next()?).then_some(())?;
            while reader.peek() == Some(b'N') {
                match reader.text.get(reader.at + 1) {
                    Some(b'a'..=b'f' | b'i' | b'j' | b'l' | b'm') => reader.at += 2,
                    _ => break,
                }
            }
            reader.skip_parameters()
        })
    }

    fn skip_parameters(&mut self) -> Option<()> {
        loop {
            match self.peek()? {
                b'X' | b'Y' | b'Z' => {
                    self.at += 1;
                    return Some(());
                }
                b'I' | b'J' | b'K' | b'L' | b'M' => {
                    // `I` is also a type's beginning, before a name.
                    let is_type = self.peek() == Some(b'I') && {
                        NameReader { at: self.at + 1, ..*self }.begins_name()
                    };
                    if is_type {
                        self.skip_type()?;
                    } else {
                        self.at += 1;
                    }
                }
                b'N' if self.starts_with("Nk") => self.at += 2,
                _ => self.skip_type()?,
            }
        }
    }

    /// `kind`: what its type begins with.
    fn skip_value(&mut self, kind: Option<u8>) -> Option<()> {
        self.within(|reader| match reader.next()? {
            b'n' => Some(()),
            b'i' | b'N' => reader.number().map(drop),
            b'0'..=b'9' => {
                reader.at -= 1;
                reader.number().map(drop)
            }
            b'e' => reader.skip_float(),
            b'c' => {
                reader.skip_float()?;
                reader.takes(b'c').then_some(())?;
                reader.skip_float()
            }
            b'a' | b'w' | b'd' => {
                let count = reader.number()?;
                reader.takes(b'_').then_some(())?;
                let digits = count.checked_mul(2)?;
                let text = reader.text.get(reader.at..reader.at.checked_add(digits)?)?;
                reader.at += digits;
                text.iter().all(u8::is_ascii_hexdigit).then_some(())
            }
            which @ (b'A' | b'S') => {
                let each = if which == b'A' && kind == Some(b'H') { 2 } else { 1 };
                let count = reader.number()?.checked_mul(each)?;
                (0..count).try_for_each(|_| reader.skip_value(None))
            }
            b'f' => reader.symbol_argument().map(drop),
            _ => None,
        })
    }

    /// `NAN`, `INF`, `NINF`, or hexadecimal digits, `P` and an exponent; `N` is a minus.
    fn skip_float(&mut self) -> Option<()> {
        if ["NAN", "INF", "NINF"].iter().any(|word| self.skip(word).is_some()) {
            return Some(());
        }
        self.takes(b'N');
        while self.peek().is_some_and(|byte| byte.is_ascii_digit() || (b'A'..=b'F').contains(&byte)) {
            self.at += 1;
        }
        self.takes(b'P').then_some(())?;
        self.takes(b'N');
        self.number().map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From the specification, and from druntime and Phobos as gdc and ldc have compiled them;
    /// without the types as `c++filt --format=dlang` has them.
    #[test]
    fn names_of_functions() {
        for (mangled, name) in [
            ("_Dmain", "D main"),
            ("_D3app4leakFZv", "app.leak"),
            ("_D4test3fooAa", "test.foo"),
            ("_D3app6Parser5parseMFAyaZi", "app.Parser.parse"),
            ("_D3app6Parser6__ctorMFiZC3app6Parser", "app.Parser.this"),
            ("_D3app6Parser6__ctorMFiZCQxQv", "app.Parser.this"),
            ("_D3app4mainFZ6nestedMFNaNbNiNfiZv", "app.main.nested"),
            ("_D3app__T3maxTiZQhFNaNbNiNfiiZi", "app.max!(...).max"),
            ("_D3app10__T3maxTiZ3maxFNaNbNiNfiiZi", "app.max!(...).max"),
            ("_DThn16_3std11concurrency14FiberScheduler5yieldMFNbZv", "std.concurrency.FiberScheduler.yield"),
            ("_DTi16_D3gcc9backtrace12LibBacktrace8toStringMxFZAya", "gcc.backtrace.LibBacktrace.toString"),
            ("_D3app12__ModuleInfoZ", "app.__ModuleInfo"),
            ("_D3std5array__T8AppenderTAyaZQo3putMFQmZv.isra.0", "std.array.Appender!(...).Appender.put"),
        ] {
            assert_eq!(demangle(mangled).as_deref(), Some(name), "{mangled}");
        }
    }

    #[test]
    fn what_is_none_stays_as_it_is() {
        for name in ["_D", "_Dx", "_D3ap", "_D3appQ", "_D3appQzFZv", "_D3app4leakFZ", "_DYNAMIC", "_D0FZv"] {
            assert_eq!(demangle(name), None, "{name}");
        }
        assert_eq!(demangle(&format!("_D3app4leakF{}iZv", "P".repeat(10_000))), None, "too deep");
        assert_eq!(demangle("_D99999999999999999999999a"), None);
    }
}
