// Swagger UI over the contract that this service states. It asks nobody else: no validator, and no address of another
// document from this page's own. The key is kept nowhere: it is gone with the page.
const scheme = matchMedia("(prefers-color-scheme: dark)");
const colour = () => document.documentElement.classList.toggle("dark-mode", scheme.matches);
colour();
scheme.addEventListener("change", colour);

SwaggerUIBundle({
  url: new URL("../openapi.json", document.currentScript.src).href,
  dom_id: "#reference",
  deepLinking: true,
  displayRequestDuration: true,
  persistAuthorization: false,
  queryConfigEnabled: false,
  tryItOutEnabled: true,
  validatorUrl: null,
});
