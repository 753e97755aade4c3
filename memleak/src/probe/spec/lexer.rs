//! Words and signs of a specification, with the column of each.

/// A piece of a specification's tail, after the function's name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Token<'a> {
    /// `ret`, `arg1`, `size`, `42`.
    Word(&'a str),
    /// `->`, `*`, `(`, `==`.
    Sign(&'a str),
    /// A character that belongs to nothing.
    Other(char),
    /// Nothing follows.
    End,
}

/// Signs; one that another begins with comes later.
const SIGNS: [&str; 13] = ["->", "==", "!=", "<=", ">=", "<", ">", "(", ")", "*", "+", "-", ","];

/// Ends a word of the head that is not in quotes.
const DELIMITERS: [char; 6] = [':', '=', '(', ')', ',', '"'];

/// Reads from left to right.
#[derive(Clone, Debug)]
pub(super) struct Lexer<'a> {
    rest: &'a str,
    /// Characters before `rest`.
    passed: usize,
}

impl<'a> Lexer<'a> {
    pub(super) fn new(text: &'a str) -> Self {
        Self { rest: text, passed: 0 }
    }

    /// The column, from 1 and in characters, of what comes next.
    pub(super) fn column(&mut self) -> usize {
        self.skip_space();
        self.passed + 1
    }

    fn skip_space(&mut self) {
        let space = self.rest.len() - self.rest.trim_start().len();
        self.take(space);
    }

    /// Takes `len` bytes, which must end at a character's end.
    fn take(&mut self, len: usize) -> &'a str {
        let (taken, rest) = self.rest.split_at_checked(len).unwrap_or((self.rest, ""));
        self.rest = rest;
        self.passed += taken.chars().count();
        taken
    }

    /// Takes a word of the head: an object, a function, a name. Empty if none begins here. A
    /// quote without an end gives `None`.
    pub(super) fn head_word(&mut self) -> Option<String> {
        self.skip_space();
        let Some(quoted) = self.rest.strip_prefix('"') else {
            return Some(self.take(plain_len(self.rest)).to_owned());
        };
        let mut word = String::new();
        let mut chars = quoted.char_indices();
        while let Some((at, c)) = chars.next() {
            match c {
                '"' => {
                    self.take(at + 2);
                    return Some(word);
                }
                '\\' => word.push(chars.next()?.1),
                c => word.push(c),
            }
        }
        None
    }

    /// Takes the next token.
    pub(super) fn next(&mut self) -> Token<'a> {
        self.skip_space();
        let Some(first) = self.rest.chars().next() else { return Token::End };
        if is_word(first) {
            let len = self.rest.find(|c| !is_word(c)).unwrap_or(self.rest.len());
            return Token::Word(self.take(len));
        }
        match SIGNS.iter().find(|sign| self.rest.starts_with(**sign)) {
            Some(sign) => Token::Sign(self.take(sign.len())),
            None => {
                self.take(first.len_utf8());
                Token::Other(first)
            }
        }
    }

    /// The next token, which stays.
    pub(super) fn peek(&self) -> Token<'a> {
        self.clone().next()
    }

    /// Takes `c`, if it comes next.
    pub(super) fn take_if(&mut self, c: char) -> bool {
        self.skip_space();
        let found = self.rest.starts_with(c);
        if found {
            self.take(c.len_utf8());
        }
        found
    }
}

fn is_word(c: char) -> bool {
    c.is_ascii_alphanumeric() || c == '_'
}

/// Bytes of the head's word that begins here: up to a delimiter, white space or `->`.
fn plain_len(text: &str) -> usize {
    let ends = |(at, c): (usize, char)| {
        let arrow = c == '-' && text.get(at..).is_some_and(|rest| rest.starts_with("->"));
        (c.is_whitespace() || c.is_control() || DELIMITERS.contains(&c) || arrow).then_some(at)
    };
    text.char_indices().find_map(ends).unwrap_or(text.len())
}

/// A word that needs no quotes.
pub(super) fn is_plain(word: &str) -> bool {
    !word.is_empty() && plain_len(word) == word.len()
}
