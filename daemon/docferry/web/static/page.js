// Refreshes the sections of a page every 2 s while its tab is visible, and tells times as people do.
// Everything works without it: forms are forms, links are links.
"use strict";
const EVERY_MS = 2000, SLOWEST_MS = 30000;
const relative = new Intl.RelativeTimeFormat(document.documentElement.lang, { numeric: "auto", style: "short" });
const absolute = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });
let etag = "", pause = EVERY_MS, timer = 0;

function tellTimes() {
  for (const time of document.querySelectorAll("time")) {
    const at = new Date(time.dateTime), seconds = (at - Date.now()) / 1000, distance = Math.abs(seconds);
    const [unit, length] = distance < 60 ? ["second", 1] : distance < 3600 ? ["minute", 60]
      : distance < 129600 ? ["hour", 3600] : ["day", 86400];
    const text = distance < 3 ? "just now" : relative.format(Math.round(seconds / length), unit);
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = absolute.format(at);
  }
}

// A section that somebody is using (focus, opened details, marked text) stays as it is.
function isInUse(section) {
  const marked = document.getSelection();
  return section.contains(document.activeElement) || section.querySelector("details[open]") !== null
    || (marked !== null && !marked.isCollapsed && section.contains(marked.anchorNode));
}

function show(html) {
  const main = document.getElementById("main");
  const fresh = new DOMParser().parseFromString(html, "text/html");
  const wanted = [...fresh.querySelectorAll("section[id]")];
  for (const old of main.querySelectorAll(":scope > section[id]"))
    if (!wanted.some((section) => section.id === old.id) && !isInUse(old)) old.remove();
  let before = null;
  for (const section of wanted) {
    const key = section.innerHTML;
    let here = document.getElementById(section.id);
    if (here === null) {
      here = section;
      if (before === null) main.prepend(here); else before.after(here);
    } else if (here.dataset.key !== key && !isInUse(here)) {
      here.replaceWith(section);
      here = section;
    }
    if (here === section) here.dataset.key = key;
    before = here;
  }
  tellTimes();
}

async function refresh() {
  timer = 0;
  if (document.hidden) return;
  const pulse = document.getElementById("pulse");
  try {
    const headers = { "X-Fragment": "1", ...(etag && { "If-None-Match": etag }) };
    const reply = await fetch(location.href, { headers, cache: "no-store", credentials: "same-origin" });
    if (reply.status === 401) return location.reload();
    if (reply.ok) { etag = reply.headers.get("ETag") ?? ""; show(await reply.text()); }
    pause = EVERY_MS;
    if (pulse) pulse.textContent = "Running";
  } catch {
    pause = Math.min(pause * 2, SLOWEST_MS);
    if (pulse) pulse.textContent = "Not reached";
  }
  plan();
}

function plan() { if (!timer && !document.hidden) timer = setTimeout(refresh, pause); }

tellTimes();
setInterval(tellTimes, 1000);
if (document.getElementById("pulse")) { document.addEventListener("visibilitychange", plan); plan(); }
