//! `POST /v1/votes`, `GET /v1/votes`: blind votes between two models: persona versions, blends of them, or the base.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::app_state::AppState;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use crate::unix_time::unix_time;
use crate::work::Work;
use service::votes::{self, MAX_PROMPT, Vote};
use service::{Caller, NameError, Service};

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVote {
    /// A model: `name@version`, a blend of those, the base, or an alias of any of these.
    a: String,
    /// Another model.
    b: String,
    winner: Winner,
    /// The prompt that both answered; at most 4096 bytes.
    prompt: Option<String>,
}

/// Which of two answers was better.
#[derive(Debug, Clone, Copy, Deserialize, ToSchema)]
#[serde(rename_all = "snake_case")]
enum Winner {
    /// The first.
    A,
    /// The second.
    B,
    /// Neither.
    Tie,
}

impl From<Winner> for votes::Winner {
    fn from(winner: Winner) -> votes::Winner {
        match winner {
            Winner::A => votes::Winner::A,
            Winner::B => votes::Winner::B,
            Winner::Tie => votes::Winner::Tie,
        }
    }
}

/// Pairs of models and the votes on them.
#[derive(Serialize, ToSchema)]
pub(super) struct VoteList {
    /// `list`.
    object: &'static str,
    data: Vec<Tally>,
}

/// The votes on two models.
#[derive(Serialize, ToSchema)]
#[schema(as = TallyShown)]
pub(super) struct Tally {
    a: String,
    b: String,
    a_wins: u64,
    b_wins: u64,
    ties: u64,
    /// `vote.tally`.
    object: &'static str,
}

impl From<votes::Tally> for Tally {
    fn from(tally: votes::Tally) -> Tally {
        Tally {
            a: tally.a,
            b: tally.b,
            a_wins: tally.a_wins,
            b_wins: tally.b_wins,
            ties: tally.ties,
            object: "vote.tally",
        }
    }
}

/// Store a vote between two models
#[utoipa::path(
    post,
    path = "/v1/votes",
    request_body = NewVote,
    responses((status = 201, description = "The votes on these two, with this one", body = Tally))
)]
pub(super) async fn vote(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
    Body(new): Body<NewVote>,
) -> Result<(StatusCode, Json<Tally>), ApiError> {
    let service = state.service()?;
    let a = pinned(&service, &caller, "a", &new.a)?;
    let b = pinned(&service, &caller, "b", &new.b)?;
    let wrong = |field: &str, message: String| {
        Err(ApiError::bad_request(
            "invalid_value",
            message,
            Some(field.to_owned()),
        ))
    };
    if a == b {
        let message = "b is the same as a; a vote is between two different models";
        return wrong("b", message.to_owned());
    }
    if let Some(prompt) = new
        .prompt
        .as_ref()
        .filter(|prompt| prompt.len() > MAX_PROMPT)
    {
        let bytes = prompt.len();
        return wrong(
            "prompt",
            format!("prompt has {bytes} bytes; at most {MAX_PROMPT} are allowed"),
        );
    }
    let vote = Vote {
        time: unix_time(),
        a,
        b,
        winner: new.winner.into(),
        prompt: new.prompt,
        key: None,
    };
    let tally = work
        .records(move || service.votes()?.add(&caller.owner(), vote))
        .await??;
    Ok((StatusCode::CREATED, Json(tally.into())))
}

/// The votes on every pair of models that the key may use
#[utoipa::path(
    get,
    path = "/v1/votes",
    responses((status = 200, description = "The list", body = VoteList))
)]
pub(super) async fn votes(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    work: Work,
) -> Result<Json<VoteList>, ApiError> {
    let service = state.service()?;
    let stored = std::sync::Arc::clone(&service);
    let tallies = work.records(move || stored.votes()?.tallies()).await??;
    let allowed = |tally: &votes::Tally| {
        [&tally.a, &tally.b]
            .into_iter()
            .all(|model| may_use(&service, &caller, model))
    };
    let tallies = tallies.into_iter().filter(allowed);
    Ok(Json(VoteList {
        object: "list",
        data: tallies.map(Tally::from).collect(),
    }))
}

/// The parts of a blend; one for a single persona.
fn parts(model: &str) -> impl Iterator<Item = registry::BlendPart> {
    registry::spec::parse(model).into_iter().flatten()
}

fn may_use(service: &Service, caller: &Caller, model: &str) -> bool {
    match model == service.base().name {
        true => caller.check_base(model).is_ok(),
        false => parts(model).all(|part| caller.may_use(&part.name)),
    }
}

/// What a model is called in votes: the base, or fixed versions.
fn pinned(
    service: &Service,
    caller: &Caller,
    field: &str,
    model: &str,
) -> Result<String, ApiError> {
    service
        .pinned_name(caller, model)
        .map_err(|error| match error {
            NameError::Denied(error) => error.into(),
            NameError::Unusable(message) => ApiError::bad_request(
                "invalid_persona",
                format!("{field}: {message}"),
                Some(field.to_owned()),
            ),
        })
}
