//! Where reports go: standard output, or the file of `--output`.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
    path::Path,
};

use super::{
    format::{Format, Occasion, Scope},
    model::Report,
    trace::EventLine,
};

/// Why reports cannot be written: one line, `<what>: <why>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file of `--output` cannot be created, or there is no standard output to be had.
    #[error("{name}: cannot be opened: {source}; name a file that can be written to with --output")]
    Open {
        /// The file, or `standard output`.
        name: String,
        /// Why.
        source: io::Error,
    },
    /// A write failed, and not for want of a reader.
    #[error("{name}: cannot be written to: {source}; make room, or name another file with --output")]
    Write {
        /// The file, or `standard output`.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// What became of something that was written.
#[must_use]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Delivery {
    /// It is on its way to the reader.
    Written,
    /// The reader has closed its end of the pipe: nobody wants more, and the program ends quietly.
    ReaderGone,
}

/// Writes reports and events, in the form that is asked for.
#[derive(Debug)]
pub struct Sink {
    /// Not buffered: what is delivered is with the reader at once.
    output: File,
    name: String,
    format: Box<dyn Format>,
    /// One delivery, made in full before any of it is written. Its memory is used again.
    buffer: Vec<u8>,
}

impl Sink {
    /// Opens `output`, or standard output. A file is created, or emptied, here and never again.
    pub fn open(output: Option<&Path>, format: Box<dyn Format>) -> Result<Self, SinkError> {
        let (output, name) = match output {
            None => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map(File::from);
                (stdout, "standard output".to_owned())
            }
            Some(path) => (File::create(path), name_of(path)),
        };
        match output {
            Ok(output) => Ok(Self { output, name, format, buffer: Vec::new() }),
            Err(source) => Err(SinkError::Open { name, source }),
        }
    }

    /// The stacks that it writes.
    pub fn scope(&self) -> Scope {
        self.format.scope()
    }

    /// Writes one report, if the form writes those that are not the last.
    pub fn report(&mut self, report: &Report) -> Result<Delivery, SinkError> {
        if !report.is_final && self.format.occasion() == Occasion::Last {
            return Ok(Delivery::Written);
        }
        self.deliver(|format, out| format.report(report, out))
    }

    /// Writes events that came in together.
    pub fn events(&mut self, events: &[EventLine]) -> Result<Delivery, SinkError> {
        self.deliver(|format, out| events.iter().try_for_each(|event| format.event(event, out)))
    }

    fn deliver(
        &mut self,
        make: impl FnOnce(&dyn Format, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Delivery, SinkError> {
        self.buffer.clear();
        let made = make(&*self.format, &mut self.buffer);
        match made.and_then(|()| write_all(&self.output, &self.buffer)) {
            Ok(()) => Ok(Delivery::Written),
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Delivery::ReaderGone),
            Err(source) => Err(SinkError::Write { name: self.name.clone(), source }),
        }
    }
}

fn name_of(path: &Path) -> String {
    format!("--output {}", path.display())
}

/// Like [`Write::write_all`], but for a descriptor that may be set to non-blocking: a command shares our standard
/// output, and some (Node.js) set that flag on the open file that we both write to.
fn write_all(mut file: &File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => wait_until_writable(file.as_fd())?,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Waits for room; also for a reader's end, which the next write tells.
fn wait_until_writable(fd: BorrowedFd<'_>) -> io::Result<()> {
    let mut poll = libc::pollfd { fd: fd.as_raw_fd(), events: libc::POLLOUT, revents: 0 };
    // SAFETY: `poll` is one valid pollfd, and the descriptor is borrowed for longer than the call.
    let result = unsafe { libc::poll(&raw mut poll, 1, -1) };
    if result < 0 {
        let error = io::Error::last_os_error();
        return if error.kind() == io::ErrorKind::Interrupted { Ok(()) } else { Err(error) };
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{
        io::{PipeReader, PipeWriter, Read as _},
        os::fd::OwnedFd,
        path::PathBuf,
    };

    use super::*;
    use crate::report::format::{Options, text};

    fn open(output: Option<PathBuf>) -> Result<Sink, SinkError> {
        Sink::open(output.as_deref(), (text::KIND.new)(&Options::new(10)))
    }

    fn into_pipe() -> (PipeReader, Sink) {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe().expect("a pipe");
        let mut sink = open(None).expect("standard output");
        sink.output = File::from(OwnedFd::from(writer));
        (reader, sink)
    }

    #[test]
    fn a_closed_pipe_is_a_reader_that_is_gone() {
        let (reader, mut sink) = into_pipe();
        drop(reader);
        let delivery = sink.deliver(|_, out| out.write_all(b"x\n")).expect("no error");
        assert_eq!(delivery, Delivery::ReaderGone);
    }

    #[test]
    fn a_non_blocking_pipe_gets_all_of_a_large_report() {
        let (mut reader, mut sink) = into_pipe();
        // SAFETY: fcntl on a descriptor that `sink` owns.
        let set = unsafe { libc::fcntl(sink.output.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
        assert_eq!(set, 0);
        let large = vec![b'x'; 3 << 20]; // a pipe holds 64 KiB
        let expected = large.len();
        let received = std::thread::spawn(move || {
            let mut all = Vec::new();
            reader.read_to_end(&mut all).map(|_| all.len())
        });
        let delivery = sink.deliver(|_, out| out.write_all(&large)).expect("no error");
        drop(sink);
        assert_eq!(delivery, Delivery::Written);
        assert_eq!(received.join().expect("the reader ends").expect("it reads"), expected);
    }

    #[test]
    fn a_file_is_emptied_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        std::fs::write(&path, "old").expect("written");
        let mut sink = open(Some(path.clone())).expect("opens");
        for line in ["one\n", "two\n"] {
            let delivery = sink.deliver(|_, out| out.write_all(line.as_bytes())).expect("no error");
            assert_eq!(delivery, Delivery::Written);
            assert!(std::fs::read_to_string(&path).expect("read").ends_with(line), "not flushed");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "one\ntwo\n");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_one_line() {
        let error = open(Some("/proc/nowhere/out".into())).expect_err("no such directory");
        let line = error.to_string();
        assert!(line.starts_with("--output /proc/nowhere/out: cannot be opened: No such file"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn a_full_disk_is_an_error_and_no_quiet_end() {
        let mut sink = open(Some("/dev/full".into())).expect("opens");
        let error = sink.deliver(|_, out| out.write_all(b"x")).expect_err("no room");
        assert!(error.to_string().contains("--output /dev/full: cannot be written to: No space"), "{error}");
    }
}
