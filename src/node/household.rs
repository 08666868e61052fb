//! Who is of the household, for people: what `peers` lists, which device a name means, and what the commands that change it
//! do.

use std::collections::BTreeMap;
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::BoxFuture;

use crate::api::convert::UNEXPECTED;
use crate::api::{
    Approval, ApproveRequest, Change, Changed, Failed, Household, Invited, Known, Named, Reply,
};
use crate::link::Link;
use crate::trust::{MAX_VALID, PutOut, Tier, Token, Vouched};
use crate::types::{PeerId, bytes_from_hex};

use super::Node;
use super::vouching::{not_linked, refused};

/// Fewer digits of an id than that may be a name as well.
const LEAST_DIGITS: usize = 4;

/// Everybody, members first.
pub(super) fn of(node: &Node) -> Household {
    let view = node.trust.view();
    let links = node.links.all();
    let asking = node.vouching.asking();
    let mut known: BTreeMap<PeerId, Option<&Link>> = BTreeMap::new();
    known.extend(view.members.keys().chain(&view.blocked).map(|id| (*id, None)));
    known.extend(links.iter().map(|link| (link.peer(), Some(&**link))));
    let mut peers: Vec<Known> = known
        .into_iter()
        .map(|(id, link)| Known {
            asks: asking.contains(&id),
            ..one(node, id, link, view.members.get(&id))
        })
        .collect();
    peers.sort_by(|a, b| (b.tier, &a.name, &a.id).cmp(&(a.tier, &b.name, &b.id)));
    Household {
        device: Named {
            name: node.name.clone(),
            id: node.id.to_string(),
        },
        peers,
    }
}

fn one(node: &Node, id: PeerId, link: Option<&Link>, vouched: Option<&Vouched>) -> Known {
    let by = |by: &PeerId| named(node, *by);
    let seen = node.vouching.seen(id).filter(|_| link.is_none());
    Known {
        id: id.to_string(),
        name: named(node, id).name,
        tier: node.trust.tier(id),
        linked: link.is_some(),
        address: link.map(|link| link.address().to_string()),
        rtt_ms: link.map(|link| link.rtt().as_secs_f64() * 1e3),
        last_seen: seen.map(|at| at.elapsed().as_secs_f64()),
        vouched_by: vouched.map(|v| v.by.iter().map(by).collect()).unwrap_or_default(),
        may_vouch: vouched.is_some_and(|v| v.may_vouch),
        uplinks: link
            .map(|link| link.offers().into_iter().map(|o| o.name).collect())
            .unwrap_or_default(),
        asks: false,
    }
}

fn named(node: &Node, id: PeerId) -> Named {
    let link = node.links.all().into_iter().find(|link| link.peer() == id);
    let name = match link {
        _ if id == node.id => Some(node.name.clone()),
        Some(link) => Some(link.name().to_owned()),
        None => node.trust.name(id),
    };
    Named {
        name: name.unwrap_or_default(),
        id: id.to_string(),
    }
}

/// The one device of that name, or whose id begins so.
///
/// # Errors
/// Where there is none, there are more, or it is this one.
fn find(node: &Node, text: &str) -> Result<(PeerId, Known), Failed> {
    let household = of(node);
    let text = text.trim();
    let is_id = text.len() >= LEAST_DIGITS && text.bytes().all(|b| b.is_ascii_hexdigit());
    let digits = text.to_ascii_lowercase();
    let means = |name: &str, id: &str| name.eq_ignore_ascii_case(text) || is_id && id.starts_with(&digits);
    let mut found: Vec<Known> = household
        .peers
        .into_iter()
        .filter(|k| means(&k.name, &k.id))
        .collect();
    let itself = means(&household.device.name, &household.device.id);
    let known = match (found.pop(), itself) {
        (Some(known), false) if found.is_empty() && !text.is_empty() => known,
        (Some(known), _) if !text.is_empty() => {
            found.push(known);
            let mut all: Vec<String> = found.iter().map(|k| k.named().to_string()).collect();
            all.extend(itself.then(|| format!("{} (this device)", household.device)));
            let all = all.join(", ");
            return Err(refused(format!(
                "`{text}` may be {all}: write the beginning of the id instead, as `tributary peers` shows it"
            )));
        }
        (None, true) => return Err(refused(format!("`{text}` is this device itself"))),
        _ => {
            return Err(refused(format!(
                "no device here is called `{text}`, or has an id that begins so (with at least {LEAST_DIGITS} digits): \
                 `tributary peers` lists them"
            )));
        }
    };
    let id = bytes_from_hex(&known.id).and_then(|bytes| Some(PeerId(bytes.try_into().ok()?)));
    Ok((id.ok_or_else(|| refused("its id is none".into()))?, known))
}

/// Does what changes who is trusted.
pub(super) fn change(node: &Node, change: Change) -> BoxFuture<'static, Result<Reply, Failed>> {
    match change {
        Change::Invite { valid, may_vouch } => std::future::ready(invite(node, valid, may_vouch)).boxed(),
        Change::Join { token } => join(node, &token),
        Change::Forget { device } => put_out(node, &device, PutOut::Forget),
        Change::Block { device } => put_out(node, &device, PutOut::Block),
        Change::Leave => leave(node),
    }
}

fn invite(node: &Node, valid: u64, may_vouch: bool) -> Result<Reply, Failed> {
    let longest = MAX_VALID.as_secs();
    if valid == 0 || valid > longest {
        return Err(refused(format!(
            "a token is good for 1 s to {} days",
            longest / (24 * 3600)
        )));
    }
    let token = node.vouching.invite(may_vouch, Duration::from_secs(valid))?;
    tracing::info!(valid, may_vouch, "a token was made");
    let token = token.to_string();
    Ok(Reply::Invited(Invited { token, valid }))
}

fn join(node: &Node, token: &str) -> BoxFuture<'static, Result<Reply, Failed>> {
    let token: Token = match token.parse() {
        Ok(token) => token,
        Err(error) => return std::future::ready(Err(refused(format!("{error}")))).boxed(),
    };
    let (vouching, links, trust) = (node.vouching.clone(), node.links.clone(), node.trust.clone());
    async move {
        let peer = vouching.join(token).await?;
        let link = links.all().into_iter().find(|link| link.peer() == peer);
        let name = link
            .map(|link| link.name().to_owned())
            .or_else(|| trust.name(peer));
        Ok(Reply::Changed(Changed::Vouched(Named {
            name: name.unwrap_or_default(),
            id: peer.to_string(),
        })))
    }
    .boxed()
}

fn put_out(node: &Node, device: &str, how: PutOut) -> BoxFuture<'static, Result<Reply, Failed>> {
    let (peer, known) = match find(node, device) {
        Ok(found) => found,
        Err(failed) => return std::future::ready(Err(failed)).boxed(),
    };
    let device = known.named();
    let nothing = match (how, known.tier) {
        (PutOut::Forget, Tier::Neighbour) => Some(format!(
            "{device} is a neighbour: nobody vouched for it, so there is nothing to forget. `tributary block` ends its link"
        )),
        (PutOut::Block, Tier::Blocked) => Some(format!("{device} is blocked already")),
        _ => None,
    };
    if let Some(why) = nothing {
        return std::future::ready(Err(refused(why))).boxed();
    }
    let members: BTreeMap<PeerId, Named> = node
        .trust
        .view()
        .members
        .keys()
        .map(|id| (*id, named(node, *id)))
        .collect();
    let trust = node.trust.clone();
    let name = device.name.clone();
    // The file may lie on an SD card.
    let done = node.tasks.blocking(move || {
        let fell = trust.put_out(peer, how);
        trust.called(peer, &name);
        fell
    });
    async move {
        let fell = done
            .await
            .map_err(|e| unexpected(&e))?
            .map_err(|e| unexpected(&e))?;
        let fell = fell.iter().filter_map(|id| members.get(id).cloned()).collect();
        Ok(Reply::Changed(match how {
            PutOut::Forget => Changed::Forgotten(device),
            PutOut::Block => Changed::Blocked { device, fell },
        }))
    }
    .boxed()
}

fn leave(node: &Node) -> BoxFuture<'static, Result<Reply, Failed>> {
    let members = node.trust.view().members.len();
    let passphrase = node.vouching.forget_passphrase();
    let trust = node.trust.clone();
    let done = node.tasks.blocking(move || trust.leave());
    async move {
        done.await
            .map_err(|e| unexpected(&e))?
            .map_err(|e| unexpected(&e))?;
        Ok(Reply::Changed(Changed::Left { members, passphrase }))
    }
    .boxed()
}

/// Begins to compare codes.
pub(super) fn approve(node: &Node, request: &ApproveRequest) -> Result<Approval, Failed> {
    let (peer, known) = find(node, &request.device)?;
    let device = known.named();
    if !known.linked {
        return Err(not_linked(&device));
    }
    // Who asks may have heard otherwise, and both must say the same.
    if known.tier == Tier::Member && !known.asks {
        return Err(refused(format!("{device} is a member already")));
    }
    let (news, person) = node.vouching.approve(peer, device)?;
    Ok(Approval { news, person })
}

fn unexpected(error: &dyn std::error::Error) -> Failed {
    Failed {
        code: UNEXPECTED,
        message: error.to_string(),
    }
}
