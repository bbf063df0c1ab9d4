//! The binary `tombolo`: runs a system on a laptop, serves the bus, and answers the operator's questions.
//!
//! Floor 4. Modules stand in the order in which `tombolo dev` meets them: the manifest, the plan, what others run, the
//! runner.
//! What is deliberately not in here: anything that a service needs to run. The runner knows services only by
//! their environment, their `GET /ready` and their end, in whatever language they are written.

mod arguments;
mod manifest;
mod mistake;
mod folder;
mod plan;
mod elsewhere;
mod process;
mod runner;
mod commands;
mod output;
mod error;

use std::io::Write;
use std::process::ExitCode;

use clap::Parser;

use crate::arguments::{
    Arguments, Auth, Command, New, ParkedEvents, Schema, Services, Subscriptions, Topics,
};
use crate::commands::{
    archive, bus, copying, deliver, dev, dividing, doctor, gateway, logs, moving, new, orders, parked,
    propagation, recover, relay, schema, services, subscriptions, topics, verify, views,
};
use crate::error::{Context, Result};
use crate::runner::control::Request;
use tombolo_event::operator::Action;

fn main() -> ExitCode {
    match act(Arguments::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // If the standard error is closed, the exit code still says it.
            writeln!(std::io::stderr(), "tombolo: {error}").ok();
            ExitCode::from(error.kind.exit_code())
        }
    }
}

/// Carries out a command, on one thread: the runner's processes are tied to the thread that started them. Only
/// what goes on has work for more; the gateway brings its own.
fn act(command: Command) -> Result<()> {
    let mut runtime = match command {
        Command::Bus(_) | Command::Archive(_) | Command::Relay(_) | Command::Deliver(_) => {
            tokio::runtime::Builder::new_multi_thread()
        }
        _ => tokio::runtime::Builder::new_current_thread(),
    };
    let runtime = runtime.enable_all().build().context(|| "cannot start the runtime".into())?;
    runtime.block_on(async {
        match command {
            Command::Dev(arguments) => dev::dev(arguments).await,
            Command::Status(arguments) => orders::status(arguments).await,
            Command::Stop(arguments) => orders::order(arguments, Request::Stop, "is stopped").await,
            Command::Start(arguments) => orders::order(arguments, Request::Start, "is ready").await,
            Command::Kill(arguments) => {
                orders::order(arguments, Request::Kill, "was killed; the runner starts it again").await
            }
            Command::Scale(arguments) => orders::scale(arguments).await,
            Command::Down(arguments) => orders::down(arguments).await,
            Command::Logs(arguments) => logs::logs(arguments).await,
            Command::Bus(arguments) => bus::bus(arguments).await,
            Command::Gateway(arguments) => gateway::gateway(arguments).await,
            Command::Relay(arguments) => relay::relay(arguments).await,
            Command::Deliver(arguments) => deliver::deliver(arguments).await,
            Command::Archive(arguments) => archive::archive(arguments).await,
            Command::Topics(command) => on_topics(command).await,
            Command::Subscriptions(command) => on_subscriptions(command).await,
            Command::Parked(command) => on_parked(command).await,
            Command::Views(command) => views::views(command).await,
            Command::Services(Services::List(arguments)) => services::list(arguments).await,
            Command::Auth(Auth::Propagation(arguments)) => propagation::propagation(arguments).await,
            Command::Recover(arguments) => recover::recover(arguments).await,
            Command::Schema(command) => on_schema(command).await,
            Command::New(New::Service(arguments)) => new::service(&arguments),
            Command::Doctor(arguments) => doctor::doctor(arguments).await,
        }
    })
}

async fn on_subscriptions(command: Subscriptions) -> Result<()> {
    match command {
        Subscriptions::List(arguments) => subscriptions::list(arguments).await,
        Subscriptions::Pause(asked) => moving::order(asked, Action::Pause).await,
        Subscriptions::Resume(asked) => moving::order(asked, Action::Resume).await,
        Subscriptions::Reset(arguments) => moving::reset(arguments).await,
        Subscriptions::Skip(arguments) => moving::skip(arguments).await,
    }
}

async fn on_parked(command: ParkedEvents) -> Result<()> {
    match command {
        ParkedEvents::List(arguments) => parked::list(arguments).await,
        ParkedEvents::Show(arguments) => parked::show_one(arguments).await,
        ParkedEvents::Redrive(arguments) => parked::redrive(arguments).await,
        ParkedEvents::Discard(arguments) => parked::discard(arguments).await,
    }
}

async fn on_schema(command: Schema) -> Result<()> {
    match command {
        Schema::Print(arguments) => schema::print(&arguments),
        Schema::Apply(arguments) => schema::apply(arguments).await,
        Schema::Check(arguments) => schema::check(arguments).await,
    }
}

async fn on_topics(command: Topics) -> Result<()> {
    match command {
        Topics::List(arguments) => topics::list(arguments).await,
        Topics::Read(arguments) => topics::read(arguments).await,
        Topics::Tail(arguments) => topics::tail(arguments).await,
        Topics::Verify(arguments) => verify::verify(arguments).await,
        Topics::Copy(arguments) => copying::copy(arguments).await,
        Topics::Divide(arguments) => dividing::divide(arguments).await,
    }
}
