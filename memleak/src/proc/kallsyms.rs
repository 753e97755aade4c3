//! What the kernel says of its own code: /proc/kallsyms, /proc/modules, and what hides their
//! addresses.

use std::{fs, io};

const KALLSYMS: &str = "/proc/kallsyms";
const MODULES: &str = "/proc/modules";

/// More than this is not taken in, bytes: 15 times what a kernel of a distribution has, with all
/// its data symbols.
const MAX_TEXT: usize = 256 << 20;

/// A line of /proc/kallsyms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelSymbol<'a> {
    /// Its address; 0 if addresses are hidden.
    pub address: u64,
    /// As nm(1) has it: `T` and `t` for text, `W` for weak symbols, `D` for data...; small letters
    /// for local ones.
    pub kind: u8,
    /// Its name.
    pub name: &'a [u8],
    /// The module it belongs to, in its brackets: `[nf_tables]`, `[bpf]`; `None` for the kernel
    /// itself.
    pub module: Option<&'a [u8]>,
}

impl KernelSymbol<'_> {
    /// Whether it is code.
    pub fn is_text(&self) -> bool {
        matches!(self.kind, b'T' | b't' | b'W' | b'w')
    }
}

/// A line of /proc/modules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ModulePlace {
    /// Its name, without brackets.
    pub name: String,
    /// Address of its first byte of code.
    pub start: u64,
    /// Bytes of code and data together.
    pub size: u64,
}

/// The text of /proc/kallsyms.
pub fn read_kallsyms() -> io::Result<Vec<u8>> {
    fs::read(KALLSYMS)
}

/// ELF notes of the kernel (`kernel`) or of a module (`ext4`): its build id is among them. Empty if
/// it does not say.
pub fn read_notes(module: &str) -> Vec<u8> {
    let path = match module {
        "kernel" => "/sys/kernel/notes".to_owned(),
        module => format!("/sys/module/{module}/notes/.note.gnu.build-id"),
    };
    fs::read(path).unwrap_or_default()
}

/// The text of /proc/modules; empty for a kernel without modules.
pub fn read_modules() -> Vec<u8> {
    fs::read(MODULES).unwrap_or_default()
}

/// A number of /proc/sys/kernel.
pub fn kernel_setting(name: &str) -> Option<i64> {
    fs::read_to_string(format!("/proc/sys/kernel/{name}")).ok()?.trim().parse().ok()
}

/// The symbols of a text in the form of /proc/kallsyms (`ADDRESS KIND NAME`, and perhaps a tab and
/// `[MODULE]`). Lines of another form are left out, and so are the assembler's marks (`$x`, `.L1`).
pub fn symbols(text: &[u8]) -> impl Iterator<Item = KernelSymbol<'_>> {
    bounded(text).split(|byte| *byte == b'\n').filter_map(symbol)
}

fn symbol(line: &[u8]) -> Option<KernelSymbol<'_>> {
    let (digits, rest) = line.split_at(line.iter().position(|byte| *byte == b' ')?);
    let (address, [b' ', kind, b' ', rest @ ..]) = (hexadecimal(digits)?, rest) else { return None };
    let (name, module) = match rest.iter().position(|byte| *byte == b'\t') {
        None => (rest, None),
        Some(tab) => (rest.get(..tab)?, Some(rest.get(tab + 1..)?)),
    };
    let in_brackets = |module: &[u8]| module.len() > 2 && module.starts_with(b"[") && module.ends_with(b"]");
    let is_mark = name.first().is_none_or(|first| matches!(first, b'$' | b'.'));
    (!is_mark && module.is_none_or(in_brackets)).then_some(KernelSymbol {
        address,
        kind: *kind,
        name,
        module,
    })
}

/// The modules of a text in the form of /proc/modules (`NAME SIZE REFERENCES USERS STATE ADDRESS`,
/// lsmod(8)).
pub fn modules(text: &[u8]) -> Vec<ModulePlace> {
    let lines = bounded(text).split(|byte| *byte == b'\n');
    lines.filter_map(|line| module(str::from_utf8(line).ok()?)).collect()
}

fn module(line: &str) -> Option<ModulePlace> {
    let mut fields = line.split_ascii_whitespace();
    let (name, size) = (fields.next()?, fields.next()?.parse().ok()?);
    let start = hexadecimal(fields.nth(3)?.strip_prefix("0x")?.as_bytes())?;
    Some(ModulePlace { name: name.to_owned(), start, size })
}

fn bounded(text: &[u8]) -> &[u8] {
    text.get(..MAX_TEXT).unwrap_or(text)
}

/// A number of at most 64 bits; by hand, since there are a hundred thousand of them.
fn hexadecimal(digits: &[u8]) -> Option<u64> {
    if !(1..=16).contains(&digits.len()) {
        return None;
    }
    digits.iter().try_fold(0, |number, digit| {
        let digit = char::from(*digit).to_digit(16)?;
        Some(number << 4 | u64::from(digit))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Option<(u64, char, String, Option<String>)> {
        let owned = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let found = symbols(line.as_bytes()).next()?;
        Some((found.address, char::from(found.kind), owned(found.name), found.module.map(owned)))
    }

    #[test]
    fn lines_of_kallsyms() {
        assert_eq!(
            read("ffffffff81000000 T _stext\n"),
            Some((0xffff_ffff_8100_0000, 'T', "_stext".into(), None))
        );
        assert_eq!(
            read("ffffffffc0a01000 t nft_do_chain\t[nf_tables]"),
            Some((0xffff_ffff_c0a0_1000, 't', "nft_do_chain".into(), Some("[nf_tables]".into())))
        );
        assert_eq!(read("0 A fixed_percpu_data"), Some((0, 'A', "fixed_percpu_data".into(), None)));
    }

    #[test]
    fn lines_of_another_form_are_left_out() {
        for line in [
            "",
            " ",
            "ffffffff81000000",
            "ffffffff81000000 ",
            "ffffffff81000000 T",
            "ffffffff81000000 T ",
            "ffffffff81000000 TT name",
            "fffffffff81000000 T seventeen_digits",
            "0xffffffff81000000 T prefixed",
            "-1 T negative",
            " ffffffff81000000 T indented",
            "ffffffff81000000 t f\tno_brackets",
            "ffffffff81000000 t f\t[]",
            "ffffffff81000000 t \t[module]",
            "ffffffff81000000 t $x",
            "ffffffff81000000 t .L12\t[module]",
        ] {
            assert_eq!(read(line), None, "{line:?}");
        }
    }

    #[test]
    fn lines_of_modules() {
        let text = "nf_tables 385024 1 nft_chain_nat,nft_compat, Live 0xffffffffc0a01000\n\
                    tls 151552 0 - Loading 0xffffffffc0b00000 (E)\nbroken 1 2\nhidden 1 0 - Live 0x0000000000000000\n";
        let found = modules(text.as_bytes());
        let place = |name: &str, start, size| ModulePlace { name: name.to_owned(), start, size };
        let expected = [
            place("nf_tables", 0xffff_ffff_c0a0_1000, 385_024),
            place("tls", 0xffff_ffff_c0b0_0000, 151_552),
            place("hidden", 0, 1),
        ];
        assert_eq!(found, expected);
    }
}
