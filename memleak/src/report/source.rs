//! Lines of sources beside their stacks (`--with-source`), if they are on this machine.

use std::{
    fs::{self, File},
    io::Read as _,
    os::unix::fs::OpenOptionsExt as _,
};

use crate::symbolize::Frame;

/// Lines before and after.
const AROUND: u32 = 2;
/// A larger file is no source.
const LARGEST: u64 = 8 << 20;

/// The line of a frame and those around it, with their numbers.
pub fn lines_of(frame: &Frame) -> Vec<(u32, String)> {
    match (frame.file.as_deref(), frame.directory.as_deref(), frame.line) {
        (Some(file), Some(folder), Some(line)) if !file.starts_with('/') => {
            lines_around(&format!("{folder}/{file}"), line)
        }
        (Some(file), _, Some(line)) => lines_around(file, line),
        _ => Vec::new(),
    }
}

/// A line of a file and those around it, with their numbers; none if it cannot be read. The name is
/// from the target's debug information: only a regular file is read, and shown to nobody but who
/// has asked for it.
fn lines_around(path: &str, line: u32) -> Vec<(u32, String)> {
    let first = line.saturating_sub(AROUND).max(1);
    let last = line.saturating_add(AROUND);
    let Some(text) = read(path) else { return Vec::new() };
    let lines = (1u32..).zip(text.lines()).skip_while(|(number, _)| *number < first);
    let lines: Vec<(u32, String)> = lines
        .take_while(|(number, _)| *number <= last)
        .map(|(number, text)| (number, expanded(text)))
        .collect();
    // A file that is shorter is not the one that was compiled.
    if lines.iter().any(|(number, _)| *number == line) { lines } else { Vec::new() }
}

fn read(path: &str) -> Option<String> {
    // A FIFO would be waited for.
    let file = File::options().read(true).custom_flags(libc::O_NONBLOCK).open(path).ok()?;
    let metadata: fs::Metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > LARGEST {
        return None;
    }
    let mut bytes = Vec::new();
    file.take(LARGEST).read_to_end(&mut bytes).ok()?;
    Some(String::from_utf8_lossy(&bytes).into_owned())
}

/// With blanks in the place of tabs.
fn expanded(text: &str) -> String {
    text.replace('\t', "    ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_around_one() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("a.c");
        fs::write(&path, "one\ntwo\n\tthree\nfour\nfive\nsix\n").expect("written");
        let lines = |line| lines_around(path.to_str().expect("UTF-8"), line);
        let numbers = |line| lines(line).iter().map(|(number, _)| *number).collect::<Vec<_>>();
        assert_eq!(numbers(3), [1, 2, 3, 4, 5]);
        assert_eq!(lines(3).get(2), Some(&(3, "    three".to_owned())));
        assert_eq!(numbers(1), [1, 2, 3]);
        assert_eq!(numbers(6), [4, 5, 6]);
        assert_eq!((lines(7), lines(u32::MAX)), (Vec::new(), Vec::new()));
        // As debug information has it: a name, and the folder of the compilation.
        let nameless = Frame::without_function(1, None, None, crate::symbolize::NoSymbol::Unmapped);
        let mut frame = Frame { file: Some("a.c".to_owned()), line: Some(1), ..nameless };
        assert_eq!(lines_of(&frame), []);
        frame.directory = folder.path().to_str().map(str::to_owned);
        assert_eq!(lines_of(&frame).len(), 3);
        frame.file = path.to_str().map(str::to_owned);
        assert_eq!(lines_of(&frame).len(), 3);
        assert_eq!(lines_around("/dev/zero", 1), []);
        assert_eq!(lines_around("/nonexistent", 1), []);
        assert_eq!(lines_around("/", 1), []);
    }
}
