//! The arguments of a command, such as `channel`, that has a subcommand for each action on one kind of object.

#[derive(clap::Args)]
pub(super) struct ObjectArgs<C: clap::Subcommand> {
    #[command(subcommand)]
    pub(super) command: Option<C>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}
