//! `POST /v1/votes`, `GET /v1/votes`: blind votes between two speakers.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::answers::{TallyShown, VoteList};
use crate::app_state::AppState;
use crate::blocking::run_blocking;
use crate::error::ApiError;
use crate::json::Body;
use crate::middleware::auth::ApiCaller;
use crate::unix_time::unix_time;
use service::votes::{MAX_PROMPT, Tally, Vote, Winner};
use service::{Caller, Service};

#[derive(Debug, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct NewVote {
    /// A speaker: `name@version`, a blend of such, or the base.
    a: String,
    /// Another one.
    b: String,
    winner: Winner,
    /// What both were asked; at most 4096 bytes.
    prompt: Option<String>,
}

/// Keep a vote between two speakers
#[utoipa::path(
    post,
    path = "/v1/votes",
    request_body = NewVote,
    responses((status = 201, description = "How the two stand then", body = TallyShown))
)]
pub(super) async fn vote(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
    Body(new): Body<NewVote>,
) -> Result<(StatusCode, Json<Value>), ApiError> {
    let service = state.service()?;
    for (field, who) in [("a", &new.a), ("b", &new.b)] {
        speaker(&service, &caller, field, who)?;
    }
    let wrong = |field: &str, message: String| {
        Err(ApiError::bad_request(
            "invalid_value",
            message,
            Some(field.to_owned()),
        ))
    };
    if new.a == new.b {
        return wrong("b", "b is the same as a; a vote is between two".to_owned());
    }
    if let Some(prompt) = new
        .prompt
        .as_ref()
        .filter(|prompt| prompt.len() > MAX_PROMPT)
    {
        let bytes = prompt.len();
        return wrong(
            "prompt",
            format!("prompt has {bytes} bytes; at most {MAX_PROMPT} are kept"),
        );
    }
    let vote = Vote {
        time: unix_time(),
        a: new.a,
        b: new.b,
        winner: new.winner,
        prompt: new.prompt,
    };
    let tally = run_blocking(move || service.votes()?.add(&vote)).await??;
    Ok((StatusCode::CREATED, Json(shown(&tally))))
}

/// How the votes stand, for every pair that the key may ask
#[utoipa::path(
    get,
    path = "/v1/votes",
    responses((status = 200, description = "The list", body = VoteList))
)]
pub(super) async fn votes(
    State(state): State<AppState>,
    ApiCaller(caller): ApiCaller,
) -> Result<Json<Value>, ApiError> {
    let service = state.service()?;
    let kept = std::sync::Arc::clone(&service);
    let tallies = run_blocking(move || kept.votes()?.tallies()).await??;
    let mine = |tally: &&Tally| {
        [&tally.a, &tally.b]
            .into_iter()
            .all(|who| speaker_allowed(&service, &caller, who))
    };
    let data: Vec<Value> = tallies.iter().filter(mine).map(shown).collect();
    Ok(Json(json!({"object": "list", "data": data})))
}

fn shown(tally: &Tally) -> Value {
    let mut shown = json!(tally);
    shown["object"] = json!("vote.tally");
    shown
}

/// The names in a speaker that is no base, without weights.
fn names(who: &str) -> impl Iterator<Item = registry::BlendPart> {
    registry::spec::parse(who).into_iter().flatten()
}

fn speaker_allowed(service: &Service, caller: &Caller, who: &str) -> bool {
    match who == service.base().name {
        true => caller.check_base(who).is_ok(),
        false => names(who).all(|part| caller.may_use(&part.name)),
    }
}

/// Holds a speaker to what can be voted on: somebody who is there, whom the caller may ask, in a version that stays what it is.
fn speaker(service: &Service, caller: &Caller, field: &str, who: &str) -> Result<(), ApiError> {
    if who == service.base().name {
        return Ok(caller.check_base(who)?);
    }
    for part in names(who) {
        caller.check_persona(&part.name)?;
    }
    let wrong =
        |message: String| ApiError::bad_request("invalid_persona", message, Some(field.to_owned()));
    let personas = service.personas();
    personas
        .resolve(who)
        .map_err(|error| wrong(format!("{field}: {error}")))?;
    match names(who).find(|part| part.version.is_none()) {
        Some(part) => Err(wrong(format!(
            "{field}: {} has no version; a vote is on a version, such as {}@1",
            part.name, part.name
        ))),
        None => Ok(()),
    }
}
