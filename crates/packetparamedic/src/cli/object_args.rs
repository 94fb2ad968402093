//! The arguments of a command such as `channel`, which manages one kind of object and has a subcommand for each action.

#[derive(clap::Args)]
pub(super) struct ObjectArgs<C: clap::Subcommand> {
    #[command(subcommand)]
    pub(super) command: Option<C>,
    /// Print JSON
    #[arg(long, global = true)]
    pub(super) json: bool,
}
