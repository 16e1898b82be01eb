//! `lory generate`: one question, one answer of each persona.

use formats::decimal::shortest;
use serde_json::json;

use super::base::{BaseArgs, PrecisionArgs};
use super::columns;
use super::personas::PersonasArgs;
use super::registry::RegistryArgs;
use super::sampling_flags::SamplingFlags;
use super::{Usage, Verdict, print};
use base::plan::Demand;
use service::{
    Answer, AnswerBuilder, Conversation, FieldNames, GenerateRequest, RequestError, Service,
    Settings, TextEvent, TextStream,
};

/// Ask one question of one persona, or of several at once
#[derive(Debug, clap::Args)]
#[command(after_help = "\
A persona is a name (customer), a version of one (customer@3), or a blend (customer*0.7+partner*0.3).
Without --persona the base answers alone.

Examples:
  lory generate --persona customer \"Where is order #12345?\"
  lory generate --persona customer --persona partner --json \"Where is order #12345?\"")]
pub(super) struct Args {
    /// Who answers; several answer in the same batch
    #[arg(long = "persona", value_name = "NAME")]
    who: Vec<String>,
    /// What the question is about, such as an order's record
    #[arg(long, value_name = "TEXT", default_value = "")]
    input: String,
    /// A value for a variable of the persona's system prompt; may be given several times
    #[arg(long = "variable", value_name = "NAME=VALUE", value_parser = variable)]
    variables: Vec<(String, String)>,
    /// The most new tokens [default: the persona's]
    #[arg(long, value_name = "N")]
    max_new_tokens: Option<usize>,
    #[command(flatten)]
    sampling: SamplingFlags,
    /// Print one JSON object a persona, each on a line
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    base: BaseArgs,
    #[command(flatten)]
    precision: PrecisionArgs,
    #[command(flatten)]
    personas: PersonasArgs,
    #[command(flatten)]
    registry: RegistryArgs,
    /// The question
    prompt: String,
}

fn variable(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or("must be NAME=VALUE, such as shop=\"the shoe shop\"")?;
    Ok((name.to_owned(), value.to_owned()))
}

/// What errors call the fields.
const NAMES: FieldNames = FieldNames {
    persona: "--persona",
    prompt: "the prompt",
    max_new_tokens: "--max-new-tokens",
};

impl Args {
    fn request(&self, who: Option<&str>) -> GenerateRequest {
        GenerateRequest {
            conversation: Conversation::Prompt {
                prompt: self.prompt.clone(),
                input: self.input.clone(),
            },
            variables: self.variables.iter().cloned().collect(),
            sampling: self.sampling.0,
            max_new_tokens: self.max_new_tokens,
            names: NAMES,
            ..GenerateRequest::new(who, &self.prompt)
        }
    }
}

pub(super) fn run(args: Args) -> anyhow::Result<Verdict> {
    for who in &args.who {
        registry::spec::parse(who).map_err(|error| Usage(format!("--persona {who}: {error}")))?;
    }
    // The base alone needs no personas.
    let catalog = if args.who.is_empty() && args.personas.dir.is_none() {
        registry::Personas::default().into()
    } else {
        args.registry.catalog(&args.personas)?
    };
    let located = args.base.locate()?;
    let planned = located.planned(&args.precision, Demand::default())?;
    let settings = Settings {
        load: planned.load,
        base_name: located.name,
        base_sha256: located.sha256.map(str::to_owned),
        ..Settings::default()
    };
    let service = Service::open(&located.path, catalog, &settings)?;
    match args.who.as_slice() {
        [] if !args.json => stream(&service, &args.request(None))?,
        [who] if !args.json => stream(&service, &args.request(Some(who)))?,
        [] => print(&format!(
            "{}\n",
            as_json(&service.generate(&args.request(None))?)
        ))?,
        several => {
            let requests: Vec<GenerateRequest> =
                several.iter().map(|who| args.request(Some(who))).collect();
            let answers = together(&service, &requests)?;
            if args.json {
                let lines = answers
                    .iter()
                    .map(|answer| format!("{}\n", as_json(answer)));
                print(&lines.collect::<String>())?;
            } else {
                let texts: Vec<_> = several
                    .iter()
                    .cloned()
                    .zip(answers.into_iter().map(|a| a.text))
                    .collect();
                print(&columns::side_by_side(&texts, columns::width()))?;
            }
        }
    }
    service.engine().shutdown();
    Ok(Verdict::Good)
}

/// Asks all at once, so that they share the engine's steps, and waits for all.
pub(super) fn together(
    service: &Service,
    requests: &[GenerateRequest],
) -> anyhow::Result<Vec<Answer>> {
    let streams = requests
        .iter()
        .map(|request| service.stream(request).map_err(refused))
        .collect::<Result<Vec<_>, _>>()?;
    streams
        .into_iter()
        .map(|stream| collect(stream, |_| Ok(())))
        .collect()
}

/// A value out of its range is the command line's fault; a persona that is not there is found out only here.
fn refused(error: RequestError) -> anyhow::Error {
    match error {
        RequestError::Persona { .. } => error.into(),
        error if error.field().is_some() => Usage(error.to_string()).into(),
        error => error.into(),
    }
}

fn stream(service: &Service, request: &GenerateRequest) -> anyhow::Result<()> {
    collect(service.stream(request).map_err(refused)?, print)?;
    print("\n")
}

/// Waits for an answer, showing each piece as it comes.
fn collect(
    mut stream: TextStream,
    mut show: impl FnMut(&str) -> anyhow::Result<()>,
) -> anyhow::Result<Answer> {
    let mut answer = AnswerBuilder::default();
    for event in &mut stream {
        match event {
            TextEvent::Delta(delta) => {
                show(&delta.text)?;
                answer.push(delta);
            }
            TextEvent::ToolCall(call) => answer.push_call(call),
            TextEvent::End(end) => {
                return Ok(answer.finish(stream.identity.clone(), end)?);
            }
        }
    }
    anyhow::bail!("the engine ended before the answer did")
}

/// An answer as `POST /generate` gives it.
fn as_json(answer: &Answer) -> serde_json::Value {
    let adapters: Vec<_> = answer
        .identity
        .adapters
        .iter()
        .map(|adapter| json!({"sha256": adapter.id.to_string(), "scale": shortest(adapter.scale)}))
        .collect();
    let ms = |time: std::time::Duration| (time.as_secs_f64() * 1e6).round() / 1e3;
    json!({
        "response": answer.text,
        "persona": {"name": answer.identity.name, "version": answer.identity.version, "adapters": adapters},
        "finish_reason": answer.end.reason.name(),
        "usage": {"prompt_tokens": answer.end.prompt_tokens, "completion_tokens": answer.end.completion_tokens},
        "timings": {
            "queue_ms": ms(answer.end.timings.queue),
            "first_token_ms": answer.end.timings.first_token.map(ms),
            "total_ms": ms(answer.end.timings.total),
        },
    })
}
