// What a page does besides being read: it follows what is booked, and it zooms. Whole without it.
"use strict";
(() => {
  const body = document.body;
  document.documentElement.classList.add("js");

  // ── live ──────────────────────────────────────────────────────────────────────────
  const EVERY = 2000;
  const live = document.getElementById("live");
  const isLive = () => live !== null && live.getAttribute("aria-pressed") === "true";
  const view = () => document.getElementById("view");
  if (live !== null) {
    live.addEventListener("click", () => live.setAttribute("aria-pressed", String(!isLive())));
    setInterval(() => {
      // Not while somebody is in the middle of a word.
      if (isLive() && document.visibilityState === "visible" && !document.activeElement?.matches("input:not([type=radio])")) {
        body.dispatchEvent(new CustomEvent("tick"));
      }
    }, EVERY);
  }
  document.addEventListener("htmx:config:request", (event) => {
    const request = event.detail?.ctx?.request;
    if (request && event.detail.ctx.sourceElement === view()) {
      // Answered with nothing, as long as nothing has changed.
      request.headers["X-Seen"] = view().dataset.version;
    }
  });

  // ── a form that asks only for what is said in it ──────────────────────────────────
  document.addEventListener("htmx:config:request", (event) => {
    const ctx = event.detail?.ctx;
    if (ctx?.sourceElement?.matches?.("form.filters") && ctx.request.body instanceof FormData) {
      for (const [name, value] of [...ctx.request.body]) if (value === "") ctx.request.body.delete(name);
    }
  });

  // ── zoom ──────────────────────────────────────────────────────────────────────────
  let library = null;
  const load = () => library ??= new Promise((resolve, reject) => {
    const { base, stamp } = body.dataset;
    const style = Object.assign(document.createElement("link"), { rel: "stylesheet", href: `${base}/static/uPlot.min.css?${stamp}` });
    const script = Object.assign(document.createElement("script"), { src: `${base}/static/uPlot.iife.min.js?${stamp}`, onload: resolve, onerror: reject });
    document.head.append(style, script);
  });
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  let open = null;

  async function draw(button) {
    const place = button.parentElement.querySelector(".plot");
    const chart = button.parentElement.querySelector(".chart");
    if (open) {
      open.destroy();
      open = null;
      place.replaceChildren();
      place.hidden = true;
      chart.hidden = false;
      button.textContent = "Zoom";
      return;
    }
    await load();
    const answer = await fetch(button.dataset.plot);
    if (!answer.ok) return;
    const told = await answer.json();
    const usd = (value) => value == null ? "" : `$${value >= 1 ? value.toFixed(2) : value.toPrecision(3)}`;
    const axis = { stroke: colour("--dim"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line") } };
    const hint = Object.assign(document.createElement("p"), { className: "hint",
      textContent: "Drag over a time to look closer. The page follows; a double click shows all again." });
    place.hidden = false;
    chart.hidden = true;
    button.textContent = "Bars";
    open = new uPlot({
      width: place.clientWidth, height: 240,
      series: [{ label: "at" }, ...told.models.map((model, i) => ({
        label: model.name, stroke: colour(`--c${i}`), fill: colour(`--c${i}`) + "22", width: 1.5,
        paths: uPlot.paths.stepped({ align: 1 }), points: { show: false }, value: (_, v) => usd(v) }))],
      axes: [axis, { ...axis, size: 64, values: (_, splits) => splits.map(usd) }],
      hooks: { setSelect: [(plot) => {
        if (plot.select.width < 8) return;
        const at = (x) => new Date(plot.posToVal(x, "x") * 1000).toISOString().slice(0, 19) + "+00:00";
        const url = new URL(location.href);
        url.searchParams.delete("range");
        url.searchParams.set("from", at(plot.select.left));
        url.searchParams.set("to", at(plot.select.left + plot.select.width));
        if (url.pathname.endsWith("/dashboard")) location.assign(url);
      }] },
    }, [told.at, ...told.models.map((model) => model.usd)], place);
    place.append(hint);
  }
  document.addEventListener("click", (event) => {
    const button = event.target.closest?.(".zoom");
    if (button) draw(button).catch((error) => console.warn(error));
  });
  addEventListener("resize", () => open?.setSize({ width: open.root.parentElement.clientWidth, height: 240 }));
  const offer = () => { for (const button of document.querySelectorAll(".zoom[hidden]")) button.hidden = false; };
  document.addEventListener("htmx:after:settle", offer);
  document.addEventListener("htmx:after:swap", offer);
  offer();

  // ── a link that signs in: /dashboard/sign-in#token=…; what follows # is told to no server ──
  const form = document.getElementById("sign-in");
  const token = form && new URLSearchParams(location.hash.slice(1)).get("token");
  if (token) {
    history.replaceState(null, "", location.pathname);
    form.secret.value = token;
    form.submit();
  }
})();
