//! Where reports go: standard output, or the file of `--output`; and the files of other forms.

use std::{
    ffi::OsStr,
    fs::File,
    io::{self, Write},
    os::fd::{AsFd as _, AsRawFd as _, BorrowedFd},
};

use super::{
    files::{ReportFile, ReportFileError},
    format::{Format, Occasion, Scope},
    model::Report,
    output::{self, OutputError, OutputFile, Protected, WholeFile},
    trace::EventLine,
};

/// Why reports cannot be written: one line, `<what>: <why>; <what to do>`.
#[derive(Debug, thiserror::Error)]
pub enum SinkError {
    /// The file of `--output` cannot be written to, or must not be.
    #[error("{name}: {source}")]
    Output {
        /// The option and its value.
        name: String,
        /// Why, and what to do.
        source: OutputError,
    },
    /// A file beside the reports.
    #[error("{name}: {source}")]
    File {
        /// The option and its value.
        name: String,
        /// Why, and what to do.
        source: ReportFileError,
    },
    /// There is no standard output to be had.
    #[error("standard output: cannot be opened: {0}; name a file with --output")]
    Stdout(io::Error),
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
pub(crate) enum Delivery {
    /// It is on its way to the reader.
    Written,
    /// The reader has closed its end of the pipe: nobody wants more, and the program ends quietly.
    ReaderGone,
}

/// Writes reports and events, in the form that is asked for.
#[derive(Debug)]
pub(crate) struct Sink {
    output: Output,
    format: Box<dyn Format>,
    /// Files of the last report.
    files: Vec<(ReportFile, Box<dyn Format>)>,
    /// Files of the next report ([`Self::ask`]).
    asked: Vec<(ReportFile, Box<dyn Format>)>,
    /// Standard output, while a view has the terminal.
    hidden: Option<Output>,
    /// A view shows all stacks.
    has_view: bool,
    /// It shows what each thread has acquired.
    view_has_threads: bool,
    /// A terminal that goes is no reason to end.
    outlives_terminal: bool,
    /// Reports go to standard output.
    is_stdout: bool,
    protected: Protected,
    /// One delivery, made in full before any of it is written. Its memory is used again.
    buffer: Vec<u8>,
    /// The last write has failed within a line.
    within_line: bool,
}

/// Where deliveries go. Not buffered: what is delivered is with the reader at once.
#[derive(Debug)]
enum Output {
    /// Standard output, or a file that is open.
    Open { file: File, name: String },
    /// To be opened when there is something to write: until then what is there stays as it is.
    Named(OutputFile),
    /// Nowhere: standard output has a file's form, or no reader any more.
    Nowhere,
}

impl Sink {
    /// For standard output, or the file `output`, which is not touched yet.
    pub(crate) fn open(output: Option<&OutputFile>, format: Box<dyn Format>) -> Result<Self, SinkError> {
        let is_stdout = output.is_none();
        let output = match output {
            None => {
                let stdout = io::stdout().as_fd().try_clone_to_owned().map_err(SinkError::Stdout)?;
                Output::Open { file: stdout.into(), name: "standard output".to_owned() }
            }
            Some(output) => Output::Named(output.clone()),
        };
        Ok(Self {
            output,
            format,
            files: Vec::new(),
            asked: Vec::new(),
            hidden: None,
            has_view: false,
            view_has_threads: false,
            outlives_terminal: false,
            is_stdout,
            protected: Protected::default(),
            buffer: Vec::new(),
            within_line: false,
        })
    }

    /// Adds a file of the last report. One that goes to standard output is alone there.
    pub(crate) fn add_file(&mut self, file: ReportFile, format: Box<dyn Format>) {
        if file.is_stdout() && matches!(self.output, Output::Open { .. }) {
            self.output = Output::Nowhere;
        }
        self.files.push((file, format));
    }

    /// There are files to be written, whether or not somebody reads the reports.
    pub(crate) fn has_files(&self) -> bool {
        !self.files.is_empty()
    }

    /// Nobody reads the reports any more.
    pub(crate) fn lose_reader(&mut self) {
        self.output = Output::Nowhere;
        self.hidden = None;
    }

    /// Standard output has gone with its terminal. The file of `--output` has not.
    pub(crate) fn lose_terminal(&mut self) {
        self.hidden = None;
        if self.is_stdout {
            self.output = Output::Nowhere;
        }
    }

    /// A terminal that goes ends what is written there, and nothing else.
    pub(crate) fn outlive_terminal(&mut self) {
        self.outlives_terminal = true;
    }

    /// A view shows the reports, and has standard output for itself.
    pub(crate) fn begin_view(&mut self) {
        self.has_view = true;
        if matches!(self.output, Output::Open { .. }) {
            self.hidden = Some(std::mem::replace(&mut self.output, Output::Nowhere));
        }
    }

    /// The view shows what each thread has acquired, or no longer does.
    pub(crate) fn show_threads(&mut self, shows: bool) {
        self.view_has_threads = shows;
    }

    /// The view has ended.
    pub(crate) fn end_view(&mut self) {
        self.has_view = false;
        if let Some(output) = self.hidden.take() {
            self.output = output;
        }
    }

    /// The next report goes to this file as well.
    pub(crate) fn ask(&mut self, file: ReportFile, format: Box<dyn Format>) {
        self.asked.push((file, format));
    }

    /// Writes the files that were asked for; gives what became of each, in one line.
    pub(crate) fn write_asked(&mut self, report: &Report) -> Vec<String> {
        let asked = std::mem::take(&mut self.asked);
        let write = |(file, format): (ReportFile, Box<dyn Format>)| {
            let path = file.path.display();
            match file.write(&*format, report, &self.protected) {
                Ok(()) => format!("written: {path}"),
                Err(error) => format!("{path}: {error}"),
            }
        };
        asked.into_iter().map(write).collect()
    }

    /// The program of process `pid` is traced from now on: nothing is written over it.
    pub(crate) fn protect_process(&mut self, pid: u32) {
        self.protected.add_process(pid);
    }

    /// The same, of a command that is about to be started.
    pub(crate) fn protect_command(&mut self, program: &OsStr) {
        self.protected.add_command(program);
    }

    /// What is wrong with the file of `--output`, as far as this can be known before anything is
    /// traced.
    pub(crate) fn check(&self) -> Result<(), SinkError> {
        for (file, _) in &self.files {
            let wrong =
                |source| SinkError::File { name: file.name(), source: ReportFileError::Output(source) };
            file.check(&self.protected).map_err(wrong)?;
        }
        match &self.output {
            Output::Open { .. } | Output::Nowhere => Ok(()),
            Output::Named(output) => output::check(&output.path, &self.protected)
                .map_err(|source| SinkError::Output { name: name_of(output), source }),
        }
    }

    /// The forms of a report.
    fn formats(&self, is_final: bool) -> impl Iterator<Item = &dyn Format> {
        let files = self.files.iter().filter(move |_| is_final).map(|(_, format)| &**format);
        let asked = self.asked.iter().map(|(_, format)| &**format);
        [&*self.format].into_iter().chain(files).chain(asked)
    }

    /// The stacks that it writes.
    pub(crate) fn scope(&self, is_final: bool) -> Scope {
        match self.has_view || self.formats(is_final).any(|format| format.scope() == Scope::All) {
            true => Scope::All,
            false => Scope::Top,
        }
    }

    /// Single blocks are wanted.
    pub(crate) fn needs_blocks(&self, is_final: bool) -> bool {
        self.formats(is_final).any(Format::needs_blocks)
    }

    /// What each thread has acquired is wanted. Of the last report nobody can ask for it later.
    pub(crate) fn needs_threads(&self, is_final: bool) -> bool {
        self.has_view && (self.view_has_threads || is_final)
            || self.formats(is_final).any(Format::needs_threads)
    }

    /// Writes one report, if the form writes those that are not the last.
    pub(crate) fn report(&mut self, report: &Report) -> Result<Delivery, SinkError> {
        if !report.is_final && self.format.occasion() == Occasion::Last {
            return Ok(Delivery::Written);
        }
        let delivery = self.print(report);
        if report.is_final {
            self.write_files(report)?;
        }
        delivery
    }

    /// Writes one report, and no files.
    pub(crate) fn print(&mut self, report: &Report) -> Result<Delivery, SinkError> {
        self.deliver(|format, out| format.report(report, out))
    }

    /// Writes all files, as far as they can be written; gives the first error.
    fn write_files(&self, report: &Report) -> Result<(), SinkError> {
        let mut outcome = Ok(());
        for (file, format) in &self.files {
            let written = file.write(&**format, report, &self.protected);
            outcome = outcome.and(written.map_err(|source| SinkError::File { name: file.name(), source }));
        }
        outcome
    }

    /// Writes events that came in together.
    pub(crate) fn events(&mut self, events: &[EventLine]) -> Result<Delivery, SinkError> {
        self.deliver(|format, out| events.iter().try_for_each(|event| format.event(event, out)))
    }

    fn deliver(
        &mut self,
        make: impl FnOnce(&dyn Format, &mut dyn Write) -> io::Result<()>,
    ) -> Result<Delivery, SinkError> {
        if matches!(self.output, Output::Nowhere) {
            return Ok(Delivery::Written);
        }
        self.buffer.clear();
        if self.within_line {
            self.buffer.push(b'\n');
        }
        let made = make(&*self.format, &mut self.buffer);
        if self.format.occasion() == Occasion::Last
            && let Output::Named(output) = &self.output
            && !output.append
        {
            return write_whole(output, &self.protected, made, &self.buffer);
        }
        let Some((file, name)) = self.output.opened(&self.protected)? else { return Ok(Delivery::Written) };
        let mut written = 0;
        let result = made.and_then(|()| write_all(file, &self.buffer, &mut written));
        if let Some(last) = written.checked_sub(1) {
            self.within_line = self.buffer.get(last) != Some(&b'\n');
        }
        // A terminal that has been hung up (tty(4)); SIGHUP comes at the same time.
        let is_hung_up = |error: &io::Error| error.raw_os_error() == Some(libc::EIO);
        if result.as_ref().is_err_and(is_hung_up) && self.outlives_terminal {
            self.lose_terminal();
            return Ok(Delivery::Written);
        }
        delivery(name, result)
    }
}

impl Output {
    /// Opens it the first time; gives it and its name. `None` if there is none.
    fn opened(&mut self, protected: &Protected) -> Result<Option<(&File, &str)>, SinkError> {
        if let Self::Named(output) = self {
            let name = name_of(output);
            match output::open_stream(&output.path, output.append, protected) {
                Ok(file) => *self = Self::Open { file, name },
                Err(source) => return Err(SinkError::Output { name, source }),
            }
        }
        match self {
            Self::Open { file, name } => Ok(Some((file, name))),
            Self::Nowhere => Ok(None),
            Self::Named(output) => Err(SinkError::Output {
                name: name_of(output),
                source: io::Error::from(io::ErrorKind::NotFound).into(),
            }),
        }
    }
}

/// The file of one report.
fn write_whole(
    output: &OutputFile,
    protected: &Protected,
    made: io::Result<()>,
    bytes: &[u8],
) -> Result<Delivery, SinkError> {
    let name = name_of(output);
    let mut file = WholeFile::create(&output.path, protected)
        .map_err(|source| SinkError::Output { name: name.clone(), source })?;
    let written = made.and_then(|()| file.write_all(bytes)).and_then(|()| file.commit());
    delivery(&name, written)
}

fn delivery(name: &str, written: io::Result<()>) -> Result<Delivery, SinkError> {
    match written {
        Ok(()) => Ok(Delivery::Written),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(Delivery::ReaderGone),
        Err(source) => Err(SinkError::Write { name: name.to_owned(), source }),
    }
}

fn name_of(output: &OutputFile) -> String {
    format!("--output {}", output.path.display())
}

/// Like [`Write::write_all`], but for a descriptor that may be set to non-blocking: a command
/// shares our standard output, and some (Node.js) set that flag on the open file that we both write
/// to. `written` counts bytes also when it fails.
fn write_all(mut file: &File, mut bytes: &[u8], written: &mut usize) -> io::Result<()> {
    while !bytes.is_empty() {
        match file.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(some) => {
                *written += some;
                bytes = bytes.get(some..).unwrap_or_default();
            }
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
    use crate::report::format::{Options, folded, text};

    fn open(output: Option<PathBuf>) -> Result<Sink, SinkError> {
        let output = output.map(|path| OutputFile { path, append: false });
        Sink::open(output.as_ref(), (text::KIND.new)(&Options::new(10)))
    }

    fn into_pipe() -> (PipeReader, Sink) {
        let (reader, writer): (PipeReader, PipeWriter) = io::pipe().expect("a pipe");
        let mut sink = open(None).expect("standard output");
        sink.output = Output::Open { file: OwnedFd::from(writer).into(), name: "a pipe".to_owned() };
        (reader, sink)
    }

    #[test]
    fn a_closed_pipe_is_a_reader_that_is_gone() {
        let (reader, mut sink) = into_pipe();
        drop(reader);
        let delivery = sink.deliver(|_, out| out.write_all(b"x\n")).expect("no error");
        assert_eq!(delivery, Delivery::ReaderGone);
    }

    /// The terminal goes in the middle of a report: the write waits for room by then, and fails.
    #[test]
    fn a_terminal_that_goes_during_a_write_is_an_error_only_if_it_is_needed() {
        use std::os::fd::FromRawFd as _;
        for outlives in [false, true] {
            let (mut shows, mut ours) = (-1, -1);
            let (name, settings, size) = (std::ptr::null_mut(), std::ptr::null(), std::ptr::null());
            // SAFETY: openpty(3) writes two descriptors, which are ours from then on.
            let made = unsafe { libc::openpty(&raw mut shows, &raw mut ours, name, settings, size) };
            assert_eq!(made, 0, "{}", io::Error::last_os_error());
            // SAFETY: both are open, and nobody else's.
            let (shows, ours) = unsafe { (OwnedFd::from_raw_fd(shows), File::from_raw_fd(ours)) };
            let mut sink = open(None).expect("standard output");
            sink.output = Output::Open { file: ours, name: "a terminal".to_owned() };
            if outlives {
                sink.outlive_terminal();
            }
            let gone = std::thread::spawn(move || {
                std::thread::sleep(std::time::Duration::from_millis(50));
                drop(shows);
            });
            let large = vec![b'x'; 1 << 20]; // a terminal holds some KiB
            let delivery = sink.deliver(|_, out| out.write_all(&large));
            gone.join().expect("it has gone");
            match outlives {
                true => {
                    assert_eq!(delivery.expect("no error"), Delivery::Written);
                    assert!(matches!(sink.output, Output::Nowhere));
                }
                false => assert!(delivery.expect_err("an error").to_string().contains("Input/output error")),
            }
        }
    }

    #[test]
    fn a_non_blocking_pipe_gets_all_of_a_large_report() {
        let (mut reader, mut sink) = into_pipe();
        let (file, _) = sink.output.opened(&Protected::default()).expect("a pipe").expect("one");
        // SAFETY: fcntl on a descriptor that `sink` owns.
        let set = unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
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
    fn a_file_is_emptied_once_and_not_before_there_is_a_report() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        std::fs::write(&path, "old").expect("written");
        let mut sink = open(Some(path.clone())).expect("opens");
        sink.check().expect("may be written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");
        for line in ["one\n", "two\n"] {
            let delivery = sink.deliver(|_, out| out.write_all(line.as_bytes())).expect("no error");
            assert_eq!(delivery, Delivery::Written);
            assert!(std::fs::read_to_string(&path).expect("read").ends_with(line), "not flushed");
        }
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "one\ntwo\n");
    }

    #[test]
    fn a_file_that_cannot_be_made_is_one_line() {
        let mut sink = open(Some("/proc/nowhere/out".into())).expect("not looked at yet");
        let line = sink.check().expect_err("no such directory").to_string();
        let again = sink.deliver(|_, out| out.write_all(b"x")).expect_err("no such directory");
        assert_eq!(again.to_string(), line);
        assert!(line.starts_with("--output /proc/nowhere/out: cannot be opened: No such file"), "{line}");
        assert!(!line.contains('\n'));
    }

    #[test]
    fn a_full_disk_is_an_error_and_no_quiet_end() {
        let mut sink = open(Some("/dev/full".into())).expect("opens");
        let error = sink.deliver(|_, out| out.write_all(b"x")).expect_err("no room");
        assert!(error.to_string().contains("--output /dev/full: cannot be written to: No space"), "{error}");
    }

    /// What could be written of a report before the disk was full is not the beginning of the next
    /// one.
    #[test]
    fn after_half_a_line_comes_a_new_one() {
        let (mut reader, mut sink) = into_pipe();
        sink.within_line = true;
        for text in ["one\n", "two"] {
            let delivery = sink.deliver(|_, out| out.write_all(text.as_bytes())).expect("no error");
            assert_eq!(delivery, Delivery::Written);
        }
        assert!(sink.within_line, "two is not a line");
        drop(sink);
        let mut all = String::new();
        reader.read_to_string(&mut all).expect("reads");
        assert_eq!(all, "\none\ntwo");
    }

    /// A form that is written once has its file whole or not at all.
    #[test]
    fn a_file_of_one_report_is_not_half_written() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("out");
        std::fs::write(&path, "old").expect("written");
        let output = OutputFile { path: path.clone(), append: false };
        let mut sink = Sink::open(Some(&output), (folded::KIND.new)(&Options::new(10))).expect("opens");
        let failed = sink.deliver(|_, out| {
            out.write_all(b"half")?;
            Err(io::ErrorKind::OutOfMemory.into())
        });
        assert!(failed.is_err());
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "old");
        let delivery = sink.deliver(|_, out| out.write_all(b"whole")).expect("no error");
        assert_eq!(delivery, Delivery::Written);
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "whole");
        assert_eq!(std::fs::read_dir(directory.path()).expect("a directory").count(), 1);
    }
}
