// Keeps an open page current. Without it a page is complete, and is loaded again every 15 seconds.
"use strict";
(() => {
  const root = document.documentElement;
  const banner = document.getElementById("connection");
  let ahead = Number(root.dataset.now) - Date.now() / 1000;
  let loading = false;
  let wanted = root.dataset.version;

  const age = (seconds) => {
    const whole = Math.max(0, Math.floor(seconds));
    for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
      if (whole >= 2 * size) return `${Math.floor(whole / size)}${unit}`;
    }
    return `${whole}s`;
  };

  const showAges = () => {
    const now = Date.now() / 1000 + ahead;
    for (const one of document.querySelectorAll("time[data-since]")) one.textContent = age(now - Number(one.dataset.since));
    for (const one of document.querySelectorAll("time[data-until]")) one.textContent = age(Number(one.dataset.until) - now);
  };

  // Replaces what has changed; keeps open details open, and the focus where it was.
  const replace = (part, fresh) => {
    if (part.innerHTML === fresh.innerHTML) return;
    const open = new Map([...part.querySelectorAll("details")].map((one) => [one.dataset.key, one.open]));
    const focus = part.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    part.replaceChildren(...fresh.childNodes);
    for (const one of part.querySelectorAll("details")) one.open = open.get(one.dataset.key) ?? one.open;
    if (focus) part.querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus();
  };

  const load = async () => {
    if (loading) return;
    loading = true;
    try {
      while (root.dataset.version !== wanted) {
        const goal = wanted;
        const answer = await fetch(location.href, { cache: "no-store" });
        const page = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of document.querySelectorAll("[data-live]")) {
          const fresh = page.getElementById(part.id);
          if (fresh) replace(part, fresh);
        }
        if (page.documentElement.dataset.now) ahead = Number(page.documentElement.dataset.now) - Date.now() / 1000;
        document.title = page.title;
        // The page may be newer than the event; then the next event is about this very page.
        root.dataset.version = page.documentElement.dataset.version || goal;
        if (wanted === goal) wanted = root.dataset.version;
        showAges();
      }
    } catch {
      root.dataset.version = "";
    } finally {
      loading = false;
    }
  };

  const events = new EventSource(root.dataset.events);
  events.onmessage = (event) => {
    banner.hidden = true;
    wanted = event.data;
    load();
  };
  events.onerror = () => {
    banner.textContent = `No connection to the load balancer. This page is from ${new Date().toLocaleTimeString()}, and may be out of date.`;
    banner.hidden = false;
  };
  setInterval(showAges, 1000);
})();
