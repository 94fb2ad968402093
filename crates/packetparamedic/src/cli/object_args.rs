//! The arguments of a command that has a subcommand for each thing that can be done with one kind of object.

#[derive(clap::Args)]
pub(super) struct ObjectArgs<C: clap::Subcommand> {
    #[command(subcommand)]
    pub(super) command: Option<C>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}
