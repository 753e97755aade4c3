//! What a source file imports: enough of Rust's syntax for that, and no more.

use std::collections::BTreeSet;

/// One import, or one path that stands in the code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Import {
    /// As written: `crate`, `bpf`, `Tracer`.
    pub path: Vec<String>,
    /// The name that it has here; `*` for all names.
    pub name: String,
    /// `pub use`: a further name of the thing, which its file need not use itself.
    pub is_reexport: bool,
}

/// What is read of a file.
#[derive(Debug, Default)]
pub(super) struct Source {
    /// Imports and paths, without those of tests.
    pub imports: Vec<Import>,
    /// Modules that it declares, without those of tests.
    pub modules: BTreeSet<String>,
    /// Modules of tests.
    pub test_modules: BTreeSet<String>,
    /// Names that it defines.
    pub defined: BTreeSet<String>,
    /// Those of types, without associated ones.
    pub types: BTreeSet<String>,
    /// All identifiers, for what may stand in some places only.
    pub words: BTreeSet<String>,
    /// Those that stand in code, not in a `use`.
    pub used: BTreeSet<String>,
}

/// Keywords that a name is defined by.
const DEFINING: &[&str] =
    &["fn", "struct", "enum", "union", "trait", "const", "static", "type", "macro_rules"];

/// Those among them that always define a type. (`type` also stands in traits.)
const TYPES: &[&str] = &["struct", "enum", "union", "trait"];

impl Source {
    /// Reads a file's text.
    pub(super) fn parse(text: &str) -> Self {
        let mut source = Self::default();
        let tokens = tokens(text);
        let mut at = 0;
        while at < tokens.len() {
            at = source.item(&tokens, at);
        }
        source
    }

    /// Takes in what begins at a token. Gives the place after it.
    fn item(&mut self, tokens: &[String], at: usize) -> usize {
        if starts_with(&tokens[at..], &["#", "[", "cfg", "(", "test", ")", "]"]) {
            return self.test_item(tokens, at + 7);
        }
        let next = |n: usize| tokens.get(at + n).map_or("", String::as_str);
        let token = tokens[at].as_str();
        if is_name(token) {
            self.words.insert(token.to_owned());
            if token != "use" {
                self.used.insert(token.to_owned());
            }
        }
        if token == "use" && next(1) != "<" {
            let end = end_of_item(tokens, at);
            let is_reexport = at > 0 && matches!(tokens[at - 1].as_str(), "pub" | ")");
            let mut tree = Tree { tokens: &tokens[..end], at: at + 1, is_reexport, found: Vec::new() };
            tree.read(&[]);
            self.words.extend(tree.found.iter().flat_map(|import| import.path.iter().cloned()));
            self.imports.append(&mut tree.found);
            return end + 1;
        }
        if token == "mod" && next(2) == ";" {
            self.modules.insert(next(1).to_owned());
        }
        if DEFINING.contains(&token) {
            let name = if next(1) == "!" { next(2) } else { next(1) };
            self.defined.insert(name.to_owned());
            let is_public = at > 0 && matches!(tokens[at - 1].as_str(), "pub" | ")");
            if TYPES.contains(&token) || token == "type" && is_public {
                self.types.insert(name.to_owned());
            }
        }
        if is_name(token) && next(1) == "::" && (at == 0 || tokens[at - 1] != "::") {
            let mut path = vec![token.to_owned()];
            while tokens.get(at + 2 * path.len() - 1).is_some_and(|separator| separator == "::")
                && let Some(name) = tokens.get(at + 2 * path.len()).filter(|name| is_name(name))
            {
                path.push(name.clone());
            }
            let name = path.last().cloned().unwrap_or_default();
            self.words.extend(path.iter().cloned());
            self.used.extend(path.iter().cloned());
            let after = at + 2 * path.len() - 1;
            self.imports.push(Import { path, name, is_reexport: false });
            return after;
        }
        at + 1
    }

    /// Passes over an item that only tests have.
    fn test_item(&mut self, tokens: &[String], at: usize) -> usize {
        let end = end_of_item(tokens, at);
        if let Some(place) = tokens[at..end].iter().position(|token| token == "mod")
            && tokens.get(end).is_some_and(|token| token == ";")
            && let Some(name) = tokens.get(at + place + 1)
        {
            self.test_modules.insert(name.clone());
        }
        end + 1
    }
}

/// The place of the token that ends the item: a semicolon, or the brace that closes its body.
fn end_of_item(tokens: &[String], from: usize) -> usize {
    let is_use = tokens[from] == "use";
    let mut depth = 0usize;
    for (at, token) in tokens.iter().enumerate().skip(from) {
        match token.as_str() {
            "{" | "(" | "[" => depth += 1,
            "}" | ")" | "]" => {
                depth = depth.saturating_sub(1);
                if depth == 0 && token == "}" && !is_use {
                    return at;
                }
            }
            ";" if depth == 0 => return at,
            _ => {}
        }
    }
    tokens.len().saturating_sub(1)
}

/// The tree of a `use`.
struct Tree<'a> {
    tokens: &'a [String],
    at: usize,
    is_reexport: bool,
    found: Vec<Import>,
}

impl Tree<'_> {
    fn read(&mut self, prefix: &[String]) {
        let mut path = prefix.to_vec();
        while let Some(token) = self.tokens.get(self.at) {
            self.at += 1;
            match token.as_str() {
                "::" => {}
                "{" => {
                    while self.tokens.get(self.at).is_some_and(|token| token != "}") {
                        self.read(&path);
                    }
                    self.at += 1;
                    // A comma, unless it is the last of a list.
                    if self.tokens.get(self.at).is_some_and(|token| token == ",") {
                        self.at += 1;
                    }
                    return;
                }
                "," => break,
                "}" => {
                    self.at -= 1;
                    break;
                }
                "as" => {
                    let name = self.tokens.get(self.at).cloned().unwrap_or_default();
                    self.at += 1;
                    self.add(path.clone(), name);
                    if self.tokens.get(self.at).is_some_and(|token| token == ",") {
                        self.at += 1;
                    }
                    return;
                }
                name => path.push(name.to_owned()),
            }
        }
        if path.len() > prefix.len() {
            // `self` in braces is the module itself.
            if path.len() > 1 && path.last().is_some_and(|name| name == "self") {
                path.pop();
            }
            let name = path.last().cloned().unwrap_or_default();
            self.add(path, name);
        }
    }

    fn add(&mut self, path: Vec<String>, name: String) {
        self.found.push(Import { path, name, is_reexport: self.is_reexport });
    }
}

fn starts_with(tokens: &[String], wanted: &[&str]) -> bool {
    tokens.len() >= wanted.len() && tokens.iter().zip(wanted).all(|(token, wanted)| token == wanted)
}

fn is_name(token: &str) -> bool {
    token.starts_with(|first: char| first.is_alphabetic() || first == '_')
}

/// Names, `::` and single other characters; no comments, no literals.
fn tokens(text: &str) -> Vec<String> {
    let chars: Vec<char> = text.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while let Some(&first) = chars.get(at) {
        let next = chars.get(at + 1).copied().unwrap_or(' ');
        at = match first {
            '/' if next == '/' => until(&chars, at, |rest| rest.starts_with(&['\n'])),
            '/' if next == '*' => end_of_comment(&chars, at),
            '"' => end_of_string(&chars, at),
            'r' if matches!(next, '"' | '#') && is_raw(&chars, at + 1) => end_of_raw(&chars, at + 1),
            'b' if next == '"' => end_of_string(&chars, at + 1),
            '\'' => end_of_quote(&chars, at),
            _ if first.is_alphanumeric() || first == '_' => {
                let end =
                    until(&chars, at, |rest| !rest.first().is_some_and(|c| c.is_alphanumeric() || *c == '_'));
                tokens.push(chars[at..end].iter().collect());
                end
            }
            ':' if next == ':' => {
                tokens.push("::".to_owned());
                at + 2
            }
            _ => {
                if !first.is_whitespace() {
                    tokens.push(first.to_string());
                }
                at + 1
            }
        };
    }
    tokens
}

fn until(chars: &[char], from: usize, is_end: impl Fn(&[char]) -> bool) -> usize {
    (from..chars.len()).find(|at| is_end(&chars[*at..])).unwrap_or(chars.len())
}

fn end_of_comment(chars: &[char], from: usize) -> usize {
    until(chars, from + 2, |rest| rest.starts_with(&['*', '/'])) + 2
}

fn end_of_string(chars: &[char], from: usize) -> usize {
    let mut at = from + 1;
    while let Some(&c) = chars.get(at) {
        at += match c {
            '\\' => 2,
            '"' => return at + 1,
            _ => 1,
        };
    }
    at
}

fn is_raw(chars: &[char], from: usize) -> bool {
    chars[from..].iter().find(|c| **c != '#') == Some(&'"')
}

fn end_of_raw(chars: &[char], from: usize) -> usize {
    let marks = chars[from..].iter().take_while(|c| **c == '#').count();
    let close: Vec<char> = std::iter::once('"').chain(std::iter::repeat_n('#', marks)).collect();
    until(chars, from + marks + 1, |rest| rest.starts_with(&close)) + close.len()
}

/// A character, or the mark of a lifetime.
fn end_of_quote(chars: &[char], from: usize) -> usize {
    match (chars.get(from + 1), chars.get(from + 2)) {
        (Some('\\'), _) => until(chars, from + 3, |rest| rest.starts_with(&['\''])) + 1,
        (Some(_), Some('\'')) => from + 3,
        _ => from + 1,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(text: &str) -> Vec<String> {
        Source::parse(text).imports.iter().map(|import| import.path.join("::")).collect()
    }

    #[test]
    fn trees_are_taken_apart() {
        let text =
            "use crate::{\n    a::{self, B, c::D as E},\n    f,\n};\nuse super::*;\npub(crate) use g::H;";
        let expected = ["crate::a", "crate::a::B", "crate::a::c::D", "crate::f", "super::*", "g::H"];
        assert_eq!(paths(text), expected);
        let source = Source::parse(text);
        assert_eq!(source.imports[2].name, "E");
        let reexports: Vec<bool> = source.imports.iter().map(|import| import.is_reexport).collect();
        assert_eq!(reexports, [false, false, false, false, false, true]);
    }

    #[test]
    fn paths_in_code_count_and_words_in_comments_and_literals_do_not() {
        let text = r##"
            /* use crate::a; */ fn f<'a>(x: &'a str) -> char { // use crate::b;
                let y = "use crate::c;"; let z = r#"use crate::"d";"#; crate::e::g(y, '"', '\''); 'x'
            }
        "##;
        assert_eq!(paths(text), ["crate::e::g"]);
    }

    #[test]
    fn tests_are_passed_over() {
        let text = "mod a;\n#[cfg(test)]\nmod tests;\n#[cfg(test)]\nmod more { use crate::b; fn f() {} }\nuse crate::c;";
        let source = Source::parse(text);
        assert_eq!(source.modules.iter().collect::<Vec<_>>(), ["a"]);
        assert_eq!(source.test_modules.iter().collect::<Vec<_>>(), ["tests"]);
        assert_eq!(paths(text), ["crate::c"]);
    }
}
