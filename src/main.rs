//! The `sinter` command.

fn main() -> std::process::ExitCode {
    sinter::cli::run(std::env::args_os())
}
