// The pages that can be opened by their address. Each is checked in every size and colour, and without JavaScript.

/** The pages of the settings. */
export const SETTINGS = [
  "/settings",
  "/settings/schedules",
  "/settings/monitors",
  "/settings/plan",
  "/settings/channels",
  "/settings/tokens",
  "/settings/about",
];

/** The pages that show what was measured. */
export const VIEWS_OF_DATA = [
  "/history",
  "/history?period=day",
  "/history?period=all",
  "/monitors",
  "/outages",
  "/alerts",
  "/report",
];

/** All pages. */
export const PATHS = ["/", ...VIEWS_OF_DATA, ...SETTINGS, "/start?step=pair", "/start?step=plan", "/start?step=schedule", "/login", "/no-such-page"];
