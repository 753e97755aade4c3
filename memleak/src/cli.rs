//! clap types: the command line as it is typed. `settings` checks and resolves it.
